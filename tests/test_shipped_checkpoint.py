"""The model that comes with the repository: `checkpoints/glyphcrm-tiny`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

import glyphcrm  # noqa: F401  (registers the model)
from glyphcrm.checkpoint import load_checkpoint
from glyphcrm.cli.entry import main
from glyphcrm.modeling import GlyphCRMForMaskedLM
from glyphcrm.tokens import SPECIAL_TOKENS

DIRECTORY = Path(__file__).parents[1] / "checkpoints" / "glyphcrm-tiny"
MOST_BYTES = 25_000_000
# Written for this test, of words that it has learnt. One character is masked in each; its neighbours decide it.
SENTENCES = [
    ("这个问▢很重要", "题"),
    ("什▢时候", "么"),
    ("今▢天气很好", "天"),
    ("我▢认为，", "们"),
    ("因▢他不来", "为"),
    ("可▢使用", "以"),
    ("如▢你想", "果"),
    ("发▢社会主义", "展"),
]


def test_it_is_small_and_holds_what_a_checkpoint_needs() -> None:
    files = {path.name for path in DIRECTORY.iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "load_glyphcrm.py",
        "model.safetensors",
        "pretraining.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) < MOST_BYTES
    model, _ = load_checkpoint(DIRECTORY, GlyphCRMForMaskedLM)  # checks atlas, tokenizer and digests
    assert model.dtype == torch.float32


@pytest.fixture(scope="module")
def fill():
    return pipeline("fill-mask", str(DIRECTORY))


@pytest.mark.parametrize(("sentence", "answer"), SENTENCES)
def test_it_fills_in_what_the_neighbours_decide(fill, sentence: str, answer: str) -> None:
    guesses = fill(sentence.replace("▢", fill.tokenizer.mask_token), top_k=5)
    assert answer in [guess["token_str"] for guess in guesses]


def test_it_reads_characters_that_it_cannot_predict(fill) -> None:
    """A rare character is a token of its own at the input, with a picture and hidden states of its own."""
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    model = AutoModelForMaskedLM.from_pretrained(DIRECTORY).eval()
    ids = tokenizer("龘䶮").input_ids
    assert tokenizer.unk_token_id not in ids and min(ids[1:-1]) >= model.config.vocab_size
    with torch.no_grad():
        states = model.glyphcrm(torch.tensor([ids])).last_hidden_state[0]
    assert (states[1] - states[2]).abs().max() > 0.1


def test_a_character_drawn_by_hand_is_read_by_its_shape(tmp_path: Path) -> None:
    """𠮷 is added as a few strokes; of all characters to predict 吉, with the upper strokes the other way, is near."""
    drawing = Image.new("L", (96, 96), "white")
    pen = ImageDraw.Draw(drawing)
    for stroke in ((26, 20, 70, 20), (8, 42, 88, 42), (48, 6, 48, 42)):
        pen.line(stroke, fill="black", width=7)
    pen.rectangle((22, 56, 74, 88), outline="black", width=7)
    drawing.save(tmp_path / "drawn.png")
    added = ["--png", f"𠮷={tmp_path / 'drawn.png'}", "--model", str(DIRECTORY), "--out", str(tmp_path / "more")]
    assert main(["atlas", "add", *added]) == 0
    model, tokenizer = load_checkpoint(tmp_path / "more", GlyphCRMForMaskedLM)
    new, like = tokenizer.convert_tokens_to_ids(["𠮷", "吉"])
    base = model.eval().glyphcrm
    rows = torch.tensor([new, *range(len(SPECIAL_TOKENS), model.config.vocab_size)])
    with torch.no_grad():
        vectors = torch.cat([base.hanglyph(part, base.glyph_table.bitmaps).vector for part in rows.split(500)])
    likeness = torch.cosine_similarity(vectors[:1] - vectors.mean(0), vectors - vectors.mean(0))
    nearest = rows[likeness.topk(6).indices].tolist()
    assert nearest[0] == new and like in nearest


def test_the_cards_figures_are_those_of_the_runs() -> None:
    card = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    runs = json.loads((DIRECTORY / "pretraining.json").read_text(encoding="utf-8"))
    for run in runs["runs"]:
        first, *_, last = run["validation"]
        assert f"{first['mlm_loss']:.3f}" in card and f"{last['mlm_loss']:.3f}" in card
        assert f"{last['mlm_accuracy']:.1%}" in card and f"{run['steps']:,}" in card
