"""Correct before fast: what is compared before anything is timed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.throughput.ideas import ALL_IDEAS, SHARED, Idea
from bench.throughput.material import Batch
from bench.throughput.models import Arguments
from glyphcrm.modeling import GlyphCRMForPreTraining

TOLERANCE = 1e-4  # of a loss
NOTHING = 1e-9  # a dropout that is on and drops nothing
GRADIENT_TOLERANCE = 1e-3  # relative; rounding decides a ReLU or the maximum of a window here and there


def check_finite(name: str, model: nn.Module, arguments: Arguments, batch: Batch) -> None:
    """Fail unless a forward and backward pass gives a finite loss and finite gradients."""
    loss = model(**arguments(batch)).loss
    loss.backward()
    assert math.isfinite(loss.item()), f"{name}: the loss of a training step is {loss.item()}"
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    model.zero_grad(set_to_none=True)
    assert not bad, f"{name}: gradients that are not finite: {', '.join(bad)}"


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
    with idea.switched_on(), torch.enable_grad():
        loss = model(**idea.arguments(batch)).loss
        wanted = [*model.glyphcrm.hanglyph.parameters(), *model.glyphcrm.blocks[0].parameters()]
        gradients = torch.autograd.grad(loss, wanted)
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])
