"""The public surfaces, and how inputs for each are made; `SURFACES` is the table.

A surface takes a seeded generator and an empty directory, writes a malformed input there, and returns the case.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import sys
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForPreTraining

from glyphcrm.checkpoint import save_with_tokens
from glyphcrm.cli.entry import main
from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.training.run_directory import claim, last_checkpoint, mark_complete
from tests.classic import TEXT
from tests.robustness.mutation import VALUES, damaged, damaged_json
from tests.robustness.runner import Case, Surface

TOKENS = (*SPECIAL_TOKENS, *TEXT)


@cache
def models() -> Path:
    """Return a directory with a small GlyphCRM and a small BERT of the same tokens."""
    root = Path(mkdtemp())
    atlas = GlyphAtlas.build(TOKENS, [default_font()])
    save_with_tokens(
        GlyphCRMForPreTraining.from_atlas(preset("nano", vocab_size=len(TOKENS)), atlas), TOKENS, root / "glyphcrm"
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    save_with_tokens(BertForPreTraining(BertConfig(vocab_size=len(TOKENS), **sizes)), TOKENS, root / "bert")
    return root


def checkpoint(kind: str, rng: random.Random, directory: Path) -> Case:
    """A model's directory with a damaged file, through a command that reads it."""
    model = Path(shutil.copytree(models() / kind, directory / "model"))
    path = rng.choice(sorted(path for path in model.iterdir() if path.is_file()))
    content = path.read_bytes()
    if rng.random() < 0.05:
        path.unlink()
    else:
        path.write_bytes((damaged_json if path.suffix == ".json" else damaged)(rng, content))
    out = directory / "out"
    commands = {
        "glyphcrm": (
            ["convert-half", "--model", str(model)],
            ["atlas", "add", "龟", "--model", str(model)],
            ["atlas", "show", "天", "--atlas", str(model)],
        ),
        "bert": (["convert-half", "--model", str(model)],),
    }
    words = [*rng.choice(commands[kind]), "--out", str(out)]
    return Case(partial(main, words), f"{words[:2]} {path.name}", out)


class Hostile:
    """Would make a file if a pickle of it was trusted."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def release(rng: random.Random, directory: Path) -> Case:
    """A foreign or damaged pickle as a released checkpoint; it runs no code."""
    out, weights = directory / "out", directory / "weights.pt"
    hostile = Hostile(out)
    buffer = io.BytesIO()
    content: Any = rng.choice(
        (hostile, {"model": hostile}, {"model": {"a": hostile}}, {"model": {"a": torch.zeros(3)}})
    )
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    forms = (buffer.getvalue(), damaged(rng, buffer.getvalue()), pickle.dumps(content, rng.randrange(5)), b"")
    weights.write_bytes(rng.choice(forms))
    (directory / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\n")
    np.savez(directory / "pictures.npz", np.zeros((5, 288), np.uint8))
    words = ["convert-release", "--weights", str(weights), "--vocab", str(directory / "vocab.txt")]
    words += ["--bitmaps", str(directory / "pictures.npz"), "--out", str(out)]
    return Case(partial(main, words), "pickle", out)


def run_records(rng: random.Random, directory: Path) -> Case:
    """A run's directory with a damaged record or checkpoint: it is named, never used."""
    run = directory / "run"
    claim(run, {"seed": 0, "steps": 4})
    for step in (2, 4):
        checkpoint = run / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "optimizer.pt").write_bytes(rng.randbytes(200))
        (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
        mark_complete(checkpoint)
    path = rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    whole = path.read_bytes()
    path.write_bytes((damaged_json if path.suffix == ".json" else damaged)(rng, whole))

    def call() -> int:
        damaged = path.read_bytes() != whole
        try:
            claim(run, {"seed": 0, "steps": 4})
            found = last_checkpoint(run)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if path.name not in ("run.json", "complete.json") and damaged:
            assert found is not None and found != path.parent, "a damaged checkpoint is used"
        return 0

    return Case(call, str(path.relative_to(run)), run / "model")


def configuration(rng: random.Random, directory: Path) -> Case:
    """Strange values in a configuration, as a library call: a `ValueError` or a configuration."""
    fields = preset("nano").to_dict()
    for name in rng.sample(sorted(fields), rng.choice((1, 1, 2, 5))):
        fields[name] = rng.choice(VALUES)

    def call() -> int:
        try:
            GlyphCRMConfig.from_dict(fields)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return Case(call, "configuration", directory / "out")


# Name -> surface, and how many inputs of it the long and the short test give.
SURFACES: dict[str, tuple[Surface, int, int]] = {
    "glyphcrm checkpoint": (partial(checkpoint, "glyphcrm"), 1200, 60),
    "bert checkpoint": (partial(checkpoint, "bert"), 500, 30),
    "release": (release, 500, 30),
    "run records": (run_records, 2000, 200),
    "configuration": (configuration, 3000, 500),
}
