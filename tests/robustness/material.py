"""Whole inputs, small, the same every time: what the others damage, and what runs that are killed train on."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import BertConfig, BertForPreTraining

from glyphcrm.checkpoint import save_with_tokens
from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.classic import TEXT

TOKENS = (*SPECIAL_TOKENS, *TEXT)
CHARACTERS = TEXT[:-2]  # without the marks
_PLACE = TemporaryDirectory()  # gone when this process ends


def sentence(rng: random.Random) -> str:
    """Return four to twelve characters and a full stop."""
    return "".join(rng.choices(CHARACTERS, k=rng.randint(4, 12))) + "。"


def documents(rng: random.Random, count: int = 12) -> list[str]:
    """Return documents of ten sentences."""
    return ["".join(sentence(rng) for _ in range(10)) for _ in range(count)]


def labelled(rng: random.Random, count: int = 24) -> list[tuple[str, str]]:
    """Return sentences, each with one of two labels."""
    return [(sentence(rng), "好坏"[i % 2]) for i in range(count)]


def tagged(rng: random.Random, count: int = 24) -> str:
    """Return a BIO file of sentences in which 天地 is a place."""
    lines = []
    for _ in range(count):
        lines += ["天\tB-LOC", "地\tI-LOC", *(f"{c}\tO" for c in sentence(rng)), ""]
    return "\n".join(lines) + "\n"


@cache
def whole_text() -> Path:
    """Return a text to pre-train on."""
    path = models() / "text.txt"
    path.write_text("\n\n".join(documents(random.Random(0))), encoding="utf-8")
    return path


@cache
def whole_task() -> Path:
    """Return a task to fine-tune on."""
    rows = "".join(f"{text}\t{label}\n" for text, label in labelled(random.Random(0)))
    (models() / "rows.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    path = models() / "task.toml"
    path.write_text('kind = "sentence"\ntrain = "rows.tsv"\ntext = "text"\nlabel = "label"\nmax_length = 24\n')
    return path


@cache
def models() -> Path:
    """Return a directory with a small GlyphCRM and a small BERT of the same tokens."""
    root = Path(_PLACE.name)
    torch.manual_seed(0)
    atlas = GlyphAtlas.build(TOKENS, [default_font()])
    atlas.save(root / "atlas.safetensors")
    save_with_tokens(
        GlyphCRMForPreTraining.from_atlas(preset("nano", vocab_size=len(TOKENS)), atlas), TOKENS, root / "glyphcrm"
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    save_with_tokens(BertForPreTraining(BertConfig(vocab_size=len(TOKENS), **sizes)), TOKENS, root / "bert")
    return root
