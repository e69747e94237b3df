"""The ideas that make GlyphCRM's training step fast, switched on one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch

from bench.throughput.material import Batch
from glyphcrm.modeling import model
from glyphcrm.modeling.kernel_backend import BACKEND_VARIABLE


@dataclass(frozen=True)
class Idea:
    """A training step with all ideas up to this one.

    Attributes:
        name: of the idea that was added.
        shared: distinct characters pass through HanGlyph once, instead of every token.
        masked_only: logits at the positions to predict alone.
        packed: padding is left out of the encoder.
        fast_glyphs: the convolution in the Fourier domain, and the stem by look-up.
        once_a_step: the distinct characters are those of all micro-batches.
    """

    name: str
    shared: bool = True
    masked_only: bool = True
    packed: bool = True
    fast_glyphs: bool = True
    once_a_step: bool = True

    def arguments(self, batch: Batch) -> Batch:
        """Return what the model is given."""
        given = dict(batch)
        if not self.shared:
            ids = batch["glyph_ids"][batch["glyph_index"]]
            given["glyph_ids"] = ids.flatten()
            given["glyph_index"] = torch.arange(ids.numel()).view_as(ids)
        if not self.masked_only:
            # The loss ignores the positions without a label, and so is the same.
            given["label_index"] = torch.arange(batch["labels"].numel())
        return given

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """What it leaves out is off in the meantime, in all models of this process."""
        backend = {} if self.fast_glyphs else {BACKEND_VARIABLE: "reference"}
        find_packing = model.find_packing if self.packed else _no_packing
        with patch.dict(os.environ, backend), patch.object(model, "find_packing", find_packing):
            yield


def _no_packing(*_: object) -> None:
    return None


EVERY_TOKEN = Idea(
    "every token through HanGlyph",
    shared=False,
    masked_only=False,
    packed=False,
    fast_glyphs=False,
    once_a_step=False,
)
IDEAS = (
    EVERY_TOKEN,
    replace(EVERY_TOKEN, name="distinct characters shared", shared=True),
    Idea("+ logits at masked positions only", packed=False, fast_glyphs=False, once_a_step=False),
    Idea("+ packed rows", fast_glyphs=False, once_a_step=False),
    Idea("+ Fourier convolution, stem by look-up", once_a_step=False),
    Idea("+ HanGlyph once for all micro-batches"),
)
ALL_IDEAS = IDEAS[-1]
