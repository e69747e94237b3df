"""The ideas that make GlyphCRM's training step fast, switched on one after the other."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch

from bench.throughput.material import Batch
from glyphcrm.modeling import model
from glyphcrm.modeling.kernel_backend import BACKEND_VARIABLE

ADD_NORM = importlib.import_module("glyphcrm_kernels.add_norm")  # as an attribute of the package it is the function


@dataclass(frozen=True)
class Idea:
    """A training step with all ideas up to this one.

    Attributes:
        name: of the idea that was added.
        shared: distinct characters pass through HanGlyph once, instead of every token.
        masked_only: logits at the positions to predict alone.
        packed: padding is left out of the encoder.
        fast_glyphs: the convolution in the Fourier domain, and the stem by look-up.
        fast_blocks: add-norm, and the dropout of attention, in C.
        once_a_step: the distinct characters are those of all micro-batches.
    """

    name: str
    shared: bool
    masked_only: bool
    packed: bool
    fast_glyphs: bool
    fast_blocks: bool
    once_a_step: bool

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
        with ExitStack() as off:
            off.enter_context(patch.dict(os.environ, backend))
            if not self.packed:
                off.enter_context(patch.object(model, "find_packing", lambda *_: None))
            if not self.fast_blocks:
                off.enter_context(patch("glyphcrm.modeling.attention.attention_fits_cpu", lambda *_: False))
                off.enter_context(patch.object(ADD_NORM, "add_norm_fits_cpu", lambda *_: False))
            yield


EVERY_TOKEN = Idea(
    "every token through HanGlyph",
    shared=False,
    masked_only=False,
    packed=False,
    fast_glyphs=False,
    fast_blocks=False,
    once_a_step=False,
)
SHARED = replace(EVERY_TOKEN, name="distinct characters shared", shared=True)
PREDICTED = replace(SHARED, name="+ logits at masked positions only", masked_only=True)
PACKED = replace(PREDICTED, name="+ packed rows", packed=True)
FAST_GLYPHS = replace(PACKED, name="+ Fourier convolution, stem by look-up", fast_glyphs=True)
FAST_BLOCKS = replace(FAST_GLYPHS, name="+ add-norm and attention's dropout in C", fast_blocks=True)
ALL_IDEAS = replace(FAST_BLOCKS, name="+ HanGlyph once for all micro-batches", once_a_step=True)
IDEAS = (EVERY_TOKEN, SHARED, PREDICTED, PACKED, FAST_GLYPHS, FAST_BLOCKS, ALL_IDEAS)
