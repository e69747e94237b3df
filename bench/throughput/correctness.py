"""Correct before fast: what is compared before anything is timed."""

from __future__ import annotations

import math

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
    model.eval()
    for block in model.glyphcrm.blocks:
        block.attention.train().p = NOTHING  # so that its dropout runs all the same
    loss, gradients = _results(model, ALL_IDEAS, batch)
    plain_loss, plain_gradients = _results(model, SHARED, batch)  # every token through HanGlyph would take minutes
    model.train()
    for block in model.glyphcrm.blocks:
        block.attention.p = model.config.attention_probs_dropout_prob
    losses = f"GlyphCRM's fast path has loss {loss:.6f}, its reference {plain_loss:.6f}"
    assert abs(loss - plain_loss) <= TOLERANCE, losses
    error = float((gradients - plain_gradients).norm() / plain_gradients.norm())
    assert error <= GRADIENT_TOLERANCE, f"the gradients of GlyphCRM's fast path are off by {error:.1e}"


def _results(model: GlyphCRMForPreTraining, idea: Idea, batch: Batch) -> tuple[float, Tensor]:
    """Return the loss, and the gradients of HanGlyph and of the first block, flat."""
    # With gradients: else vectors would come from the glyph cache.
    with idea.switched_on(), torch.enable_grad():
        loss = model(**idea.arguments(batch)).loss
        wanted = [*model.glyphcrm.hanglyph.parameters(), *model.glyphcrm.blocks[0].parameters()]
        gradients = torch.autograd.grad(loss, wanted)
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])
