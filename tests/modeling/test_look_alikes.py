"""Vectors of characters by their names, of pictures that are in no atlas, and what lies nearest to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.modeling import GlyphCRMForPreTraining, GlyphCRMModel, nearest
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import TEXT


@pytest.mark.parametrize("is_training", [False, True])
def test_vectors_of_text_ids_and_pictures(
    model: GlyphCRMForPreTraining, atlas: GlyphAtlas, tokenizer: GlyphCRMTokenizer, is_training: bool
) -> None:
    """Each is what HanGlyph says of the row; only rows are kept, and only at inference."""
    model.train(is_training)
    text = "玄 天玄\u200b黄"
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    expected = model.glyphcrm.hanglyph(ids, model.glyphcrm.glyph_table.bitmaps)
    pictures = atlas.bitmaps[ids.numpy()]
    for wanted in (text, ids, pictures, torch.tensor(pictures)):
        found = model.glyph_vectors(wanted)
        for part, other in zip(found, expected, strict=True):
            torch.testing.assert_close(part, other.detach(), rtol=1e-5, atol=1e-6)
            assert part.shape == (4, 32) and not part.requires_grad
    table = model.glyphcrm.glyph_cache._table
    assert (table is None) if is_training else (table is not None and int(table.known.sum()) == 3)
    assert [part.shape for part in model.glyph_vectors(" ")] == [(0, 32)] * 3


def test_what_has_no_vector_is_refused_in_one_line(model: GlyphCRMForPreTraining) -> None:
    for wanted, complaint in (
        ("天🀀", r"no picture of 🀀 \(U\+1F000\)"),
        (torch.tensor([0, 99999]), "id 99999 is no row"),
        (torch.tensor([-1]), "id -1 is no row"),
        (torch.zeros(2, 48, 48), r"torch.float32 \(2, 48, 48\); give"),
        (torch.zeros(288, dtype=torch.uint8), "give a text, ids"),
    ):
        with pytest.raises(UserError, match=complaint):
            model.glyph_vectors(wanted)
    for wanted, count, complaint in (
        ("天", 0, "count is 0"),
        ("天地", 1, "2 characters"),
        ("\u200b", 1, "0 characters"),
        ("🀀", 1, "no picture of 🀀"),
        (torch.zeros(1, 32), 1, r"\(32,\), not \(1, 32\)"),
    ):
        with pytest.raises(UserError, match=complaint):
            nearest(model, wanted, count)


def test_a_drawing_lies_nearest_to_what_it_shows(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> None:
    drawn = model.glyph_vectors(atlas.bitmaps[[atlas.rows["玄"]]]).vector[0]
    (token, cosine), *others = nearest(model, drawn, 4)
    assert token == "玄" and cosine == pytest.approx(1, abs=1e-5) and len(others) == 3
    assert [other for other, _ in nearest(model, "玄", 3)] == [other for other, _ in others]
    assert len(nearest(model, "玄", 10**6)) == len(atlas) - 1


def test_a_loaded_model_knows_its_characters(model: GlyphCRMForPreTraining, atlas: GlyphAtlas, directory: Path) -> None:
    """From the vocabulary beside the weights; not from another's, and not once the atlas is another."""
    expected = model.glyph_vectors(TEXT).vector
    for where, more in ((directory, {}), (directory.parent, {"subfolder": "model"})):
        loaded = GlyphCRMModel.from_pretrained(where, **more).eval()
        torch.testing.assert_close(loaded.glyph_vectors(TEXT).vector, expected)
    loaded.set_atlas(atlas.extended(GlyphAtlas.build(["麤"], [default_font()])))
    assert loaded.vocabulary["麤"] == len(atlas) and loaded.glyph_vectors("麤").vector.any()

    vocabulary = directory / "vocab.txt"
    lines = vocabulary.read_text(encoding="utf-8").split("\n")
    vocabulary.write_text("\n".join([*lines[:5], *reversed(lines[5:-1]), ""]), encoding="utf-8")
    with pytest.raises(UserError, match=r"vocab.txt: does not belong"):
        GlyphCRMModel.from_pretrained(directory).glyph_vectors("天")
    vocabulary.unlink()
    nameless = GlyphCRMModel.from_pretrained(directory).eval()
    with pytest.raises(UserError, match=r"no vocab.txt in .*give ids"):
        nameless.glyph_vectors("天")
    first = torch.tensor([atlas.rows[TEXT[0]]])
    torch.testing.assert_close(nameless.glyph_vectors(first).vector, expected[:1])
