"""What several test folders share: a small atlas and a small model, made on the spot."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

if torch.cuda.is_available():
    # PyTorch's convolutions are what the kernels are compared with, and some tests ask for equal bits.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
else:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

from glyphcrm_kernels._shared.optional_triton import INTERPRETED

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.configuration import preset
from glyphcrm.glyphs import fonts
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from tests import interpreter
from tests.classic import READ_ONLY, TEXT, VOCABULARY_SIZE

# What can be drawn must not depend on the fonts of this machine.
fonts.SYSTEM_FONT_DIRECTORIES = ()

# Where others wait for the result, the same examples every time; elsewhere new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


if INTERPRETED:
    interpreter.quicken()


def pytest_collection_finish() -> None:
    """What is imported by now stays: a collection of garbage need not look at it, which takes a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """In the end all of it goes; Triton's bindings would tell of leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    """What a test takes away from the kernels, no answer of before hides, and none of its own outlives it."""
    from glyphcrm_kernels._shared import memo

    memo.forget()
    yield
    memo.forget()


@pytest.fixture(scope="session")
def atlas() -> GlyphAtlas:
    """The first characters of the Thousand Character Classic, and five that can only be read."""
    return GlyphAtlas.build([*SPECIAL_TOKENS, *TEXT, *READ_ONLY], [default_font()])


@pytest.fixture(scope="session")
def tokenizer(atlas: GlyphAtlas, tmp_path_factory: pytest.TempPathFactory) -> GlyphCRMTokenizer:
    """The tokenizer of that atlas."""
    return GlyphCRMTokenizer.from_tokens(atlas.tokens, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def model(atlas: GlyphAtlas) -> GlyphCRMForPreTraining:
    """A nano model in evaluation mode, the same every time."""
    torch.manual_seed(0)
    return GlyphCRMForPreTraining.from_atlas(preset("nano", vocab_size=VOCABULARY_SIZE), atlas).eval()


@pytest.fixture
def directory(model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path) -> Path:
    """Where that model is saved, "model" in `tmp_path`."""
    save_checkpoint(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def rounded_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Triton's interpreter round float32 to bfloat16 as a GPU does; it cuts the bits off, twice the error."""
    from glyphcrm_kernels._shared.optional_triton import INTERPRETED

    if not INTERPRETED:
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def rounding_cast(self: Any, source: Any, dtype: Any) -> Any:
        if source.dtype.scalar.name != "fp32" or dtype.scalar.name != "bf16":
            return cast(self, source, dtype)
        rounded = torch.tensor(source.data).bfloat16().view(torch.int16).numpy().view("uint16")
        return TensorHandle(rounded, dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
