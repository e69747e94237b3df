"""In training each character is read in a font drawn at random at each step; at inference in the atlas' own."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from torch import Tensor

from glyphcrm.configuration import preset
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining, HanGlyphEmbedding
from glyphcrm.modeling.glyph_vectors import SharedGlyphs, ranks
from tests.robustness.processes import run_ranks

LACKED = 7  # characters that no other font has; special tokens are before them


def in_font(atlas: GlyphAtlas, number: int) -> GlyphAtlas:
    """The atlas as a font draws it that lacks some characters: each pixel pattern is another."""
    bitmaps, sources = atlas.bitmaps.copy(), atlas.sources.copy()
    bitmaps[5 + LACKED :] = np.random.default_rng(number).integers(0, 256, bitmaps[5 + LACKED :].shape, np.uint8)
    sources[5 + LACKED :] = len(atlas.fonts)
    return GlyphAtlas(atlas.tokens, bitmaps, (*atlas.fonts, f"Font {number}"), sources)


def float64_model(atlas: GlyphAtlas) -> GlyphCRMForPreTraining:
    torch.manual_seed(0)
    config = preset("nano", vocab_size=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return GlyphCRMForPreTraining.from_atlas(config, atlas).double().train()


def read_by_hanglyph(model: GlyphCRMForPreTraining) -> list[list[bytes]]:
    """Return what will hold the pictures of each further call of HanGlyph, in their order."""
    calls: list[list[bytes]] = []

    def look(_: object, inputs: tuple[Tensor, Tensor]) -> None:
        rows, bitmaps = inputs
        calls.append([bitmaps[row].numpy().tobytes() for row in rows.tolist()])

    model.glyphcrm.hanglyph.register_forward_pre_hook(look)
    return calls


@settings(deadline=None, max_examples=10)
@given(fonts=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_all_fonts_are_drawn_equally_often_and_by_themselves(atlas: GlyphAtlas, fonts: int, seed: int) -> None:
    """A chi-square test of each font's share, and of pairs of neighbouring characters; beyond 6 sigma."""
    model = float64_model(atlas)
    model.set_training_fonts([in_font(atlas, number) for number in range(fonts)])
    rows = torch.arange(5 + LACKED, len(atlas)).repeat(100)
    torch.manual_seed(seed)
    found, _ = model.glyphcrm.glyph_table.pictures(rows, model.glyphcrm.glyph_table.bitmaps)
    assert torch.equal(found % len(atlas), rows)
    drawn = found // len(atlas)
    for values, kinds in ((drawn, fonts + 1), (drawn[:-1:2] * (fonts + 1) + drawn[1::2], (fonts + 1) ** 2)):
        counts = torch.bincount(values, minlength=kinds).double()
        expected = len(values) / kinds
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert len(counts) == kinds and chi_square < (kinds - 1) + 6 * (2 * (kinds - 1)) ** 0.5 + 12


def test_what_is_read_is_one_picture_a_character_of_a_font_that_has_it(atlas: GlyphAtlas) -> None:
    """At each step anew; in evaluation mode, as after `set_atlas`, always the atlas' own."""
    model = float64_model(atlas)
    others = [in_font(atlas, number) for number in range(2)]
    model.set_training_fonts(others)
    calls = read_by_hanglyph(model)
    ids = torch.tensor([[2, *range(5, 20), 9, 9, 3], [2, *range(20, 35), 30, 0, 0]])
    distinct = ids.unique().tolist()
    shared = {"glyph_ids": ids.unique(), "glyph_index": ids.unique(return_inverse=True)[1]}
    for step in range(6):
        if step % 2:
            model(input_ids=ids)
        else:
            SharedGlyphs(model.glyphcrm, [shared, shared])
    model.eval()(input_ids=ids)
    own = [atlas.bitmaps[row].tobytes() for row in distinct]
    assert len(calls) == 7 and all(len(call) == len(distinct) for call in calls)
    seen: dict[int, Counter[int]] = {row: Counter() for row in distinct}
    for call in calls[:6]:
        for row, picture in zip(distinct, call, strict=True):
            seen[row].update(k for k, a in enumerate([atlas, *others]) if a.bitmaps[row].tobytes() == picture)
    assert all(seen[row] == {0: 6, 1: 6, 2: 6} for row in distinct if row < 5 + LACKED)
    assert all(seen[row].total() == 6 for row in distinct if row >= 5 + LACKED)
    assert calls[6] == own and len({tuple(call) for call in calls[:6]}) == 6
    model.set_atlas(atlas)
    model.train()(input_ids=ids)
    assert calls[7] == own
    with pytest.raises(UserError, match="other tokens"):
        model.set_training_fonts([atlas.append(["〇"], atlas.bitmaps[-1:], "another")])


def test_losses_and_gradients_are_those_of_an_atlas_of_the_pictures_that_were_drawn(atlas: GlyphAtlas) -> None:
    """Another model is given these pictures as its only ones. A wrong row, planted, is seen."""
    model, plain = float64_model(atlas), float64_model(atlas)
    other = in_font(atlas, 0)
    model.set_training_fonts([other])
    ids = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(1))

    def gradients(of: GlyphCRMForPreTraining) -> tuple[float, list[Tensor]]:
        of.zero_grad()
        loss = of(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.item(), [p.grad for p in of.glyphcrm.hanglyph.parameters() if p.grad is not None]

    torch.manual_seed(3)
    loss, found = gradients(model)
    torch.manual_seed(3)
    chosen = np.zeros(len(atlas), np.int64)
    chosen[ids.unique().numpy()] = torch.randint(2, (len(ids.unique()),)).numpy()
    for pictures, agrees in ((chosen, True), (1 - chosen, False)):
        bitmaps = np.stack([atlas.bitmaps, other.bitmaps])[pictures, np.arange(len(atlas))]
        plain.set_atlas(GlyphAtlas(atlas.tokens, bitmaps, atlas.fonts, atlas.sources))
        expected_loss, expected = gradients(plain)
        assert (loss == pytest.approx(expected_loss, rel=1e-12)) == agrees
        same = [torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, expected, strict=True)]
        assert all(same) == agrees


def test_a_drop_in_embedding_reads_the_fonts_of_its_model(atlas: GlyphAtlas) -> None:
    model = float64_model(atlas)
    embedding = HanGlyphEmbedding(model.glyphcrm).train()
    ids = torch.arange(5 + LACKED, 40)
    assert torch.equal(embedding(ids), embedding(ids))
    model.set_training_fonts([in_font(atlas, 0)])
    assert not torch.equal(embedding(ids), embedding(ids))
    assert torch.equal(embedding.eval()(ids), embedding(ids))


def one_of_two(rank: int, folder: Path, model: GlyphCRMForPreTraining, batches: list[list[dict[str, Tensor]]]) -> None:
    """Save the vectors that this process reads, as they are and with a planted fault: each draws for itself."""
    torch.set_num_threads(1)
    where = {"rank": rank, "world_size": 2, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", **where)
    for name in ("right", "wrong"):
        torch.manual_seed(rank)
        with pytest.MonkeyPatch.context() as patch:
            if name == "wrong":
                patch.setattr(ranks, "own_share", lambda ids: ids)
                patch.setattr(ranks, "gather", list)
            glyphs = SharedGlyphs(model.glyphcrm, batches[rank])
        torch.save((glyphs._ids, [leaf.detach() for leaf in glyphs._leaves]), folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


def test_processes_that_share_the_characters_read_the_same_pictures(atlas: GlyphAtlas, tmp_path: Path) -> None:
    model = float64_model(atlas)
    other = in_font(atlas, 0)
    model.set_training_fonts([other])
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(2):
        ids = torch.randint(5 + LACKED, 40, (2, 9), generator=generator)
        glyph_ids, glyph_index = ids.unique(return_inverse=True)
        batches.append([{"glyph_ids": glyph_ids, "glyph_index": glyph_index}])
    arguments = (tmp_path, model, batches)
    run_ranks(one_of_two, arguments, 2)
    (ids, vectors), (ids1, vectors1) = (torch.load(tmp_path / f"right-{rank}.pt") for rank in (0, 1))
    assert torch.equal(ids, ids1) and all(map(torch.equal, vectors, vectors1))
    with torch.no_grad():
        expected = [model.glyphcrm.hanglyph(ids, torch.tensor(a.bitmaps)).vector for a in (atlas, other)]
    is_of = torch.stack([(vectors[0] - vector).abs().amax(1) < 1e-12 for vector in expected])
    assert (is_of.sum(0) == 1).all() and is_of.any(1).all()
    (_, wrong), (_, wrong1) = (torch.load(tmp_path / f"wrong-{rank}.pt") for rank in (0, 1))
    assert not torch.equal(wrong[0], wrong1[0])
