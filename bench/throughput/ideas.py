"""The ideas that make GlyphCRM's training step fast, switched on one after the other; none changes the loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.throughput.material import Batch
from glyphcrm.modeling import GlyphCRMForPreTraining

TOLERANCE = 1e-4  # of a loss
NOTHING = 1e-9  # a dropout that is on and drops nothing
GRADIENT_TOLERANCE = 1e-3  # relative; rounding decides a ReLU or the maximum of a window here and there


@dataclass(frozen=True)
class Idea:
    """A training step with all ideas up to this one, whose name says what was added."""

    name: str
    shared: bool = False  # distinct characters pass through HanGlyph once, instead of every token
    masked_only: bool = False
    packed: bool = False  # padding is left out of the encoder
    fast_glyphs: bool = False
    fast_blocks: bool = False
    once_a_step: bool = False

    def arguments(self, batch: Batch) -> Batch:
        """Return what the model is given."""
        given = dict(batch)
        if not self.shared:
            ids = batch["input_ids"]
            given["glyph_ids"] = ids.flatten()
            given["glyph_index"] = torch.arange(ids.numel()).view_as(ids)
        if not self.masked_only:
            # The loss ignores the positions without a label, and so is the same.
            given["prediction_index"] = torch.arange(batch["labels"].numel())
        if not self.packed:
            real = given.pop("attention_mask").bool()
            if not real.all():
                given["attention_mask"] = real[:, None, None, :]  # of such a mask no lengths are taken
        return given

    @contextmanager
    def switched_on(self, model: GlyphCRMForPreTraining) -> Iterator[None]:
        """Run the parts of `model` with the implementations that the idea allows, in the meantime."""
        glyphcrm = model.glyphcrm
        with _backend(glyphcrm.hanglyph, self.fast_glyphs), _backend(glyphcrm.blocks, self.fast_blocks):
            yield


EVERY_TOKEN = Idea("every token through HanGlyph")
SHARED = replace(EVERY_TOKEN, name="distinct characters shared", shared=True)
PREDICTED = replace(SHARED, name="+ logits at masked positions only", masked_only=True)
PACKED = replace(PREDICTED, name="+ packed rows", packed=True)
FAST_GLYPHS = replace(PACKED, name="+ Fourier convolution, stem by look-up", fast_glyphs=True)
FAST_BLOCKS = replace(FAST_GLYPHS, name="+ add-norm and attention's dropout in C", fast_blocks=True)
ALL_IDEAS = replace(FAST_BLOCKS, name="+ HanGlyph once for all micro-batches", once_a_step=True)
IDEAS = (EVERY_TOKEN, SHARED, PREDICTED, PACKED, FAST_GLYPHS, FAST_BLOCKS, ALL_IDEAS)


@contextmanager
def _backend(part: nn.Module, fast: bool) -> Iterator[None]:
    """Give the modules of a part configurations of their own, with the backend "auto" or "reference"."""
    before = {module: module.config for module in part.modules() if hasattr(module, "config")}
    for module, config in before.items():
        module.config = copy.copy(config)
        module.config.kernel_backend = "auto" if fast else "reference"
    try:
        yield
    finally:
        for module, config in before.items():
            module.config = config


def check_ideas(model: GlyphCRMForPreTraining, batch: Batch) -> None:
    """Fail unless the fast path has the loss and the gradients of the plain one, with nothing dropped.

    The loss alone says little about a new model, whose predictions hardly depend on what it reads.
    """
    with nothing_dropped(model):
        loss, gradients = _results(model, ALL_IDEAS, batch)
        plain_loss, plain_gradients = _results(model, SHARED, batch)  # every token through HanGlyph would take minutes
    losses = f"GlyphCRM's fast path has loss {loss:.6f}, its reference {plain_loss:.6f}"
    assert abs(loss - plain_loss) <= TOLERANCE, losses
    error = float((gradients - plain_gradients).norm() / plain_gradients.norm())
    assert error <= GRADIENT_TOLERANCE, f"the gradients of GlyphCRM's fast path are off by {error:.1e}"


@contextmanager
def nothing_dropped(model: GlyphCRMForPreTraining) -> Iterator[None]:
    """No dropout but attention's, whose probability is so small that nothing is dropped; then `model` trains again."""
    attentions = [block.attention for block in model.glyphcrm.blocks]
    before = [attention.p for attention in attentions]
    model.eval()
    try:
        for attention in attentions:
            attention.train().p = NOTHING
        yield
    finally:
        for attention, p in zip(attentions, before, strict=True):
            attention.p = p
        model.train()


def _results(model: GlyphCRMForPreTraining, idea: Idea, batch: Batch) -> tuple[float, Tensor]:
    """Return the loss, and the gradients of HanGlyph and of the first block, flat."""
    # With gradients: else vectors would come from the glyph cache.
    with idea.switched_on(model), torch.enable_grad():
        loss = model(**idea.arguments(batch)).loss
        wanted = [*model.glyphcrm.hanglyph.parameters(), *model.glyphcrm.blocks[0].parameters()]
        gradients = torch.autograd.grad(loss, wanted)
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])
