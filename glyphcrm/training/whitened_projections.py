"""Adam's steps for HanGlyph's projections, taken in the coordinates of whitened features.

The features that a projection reads are never negative and mostly alike, so that one step of Adam on its weights moves
all characters together along a few directions of large variance and hardly tells them apart. In coordinates of
unit variance a step moves each character by its own share. It is a fixed change of basis for the optimiser (as a
preconditioner is); model, weights, and checkpoints are what they are without it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glyphcrm.modeling.hanglyph import HanGlyph

DIRECTIONS = 1024  # of the largest variance; those of a sample's smallest variances are noise
SMALLEST_VARIANCE = 1e-6  # of the largest


class Basis(NamedTuple):
    """Whitened features are ``(f - mean) @ directions``: ``mean (F,)``, ``directions (F, K)``."""

    mean: Tensor
    directions: Tensor


def whitening_basis(features: Tensor) -> Basis:
    """Return the basis in which `features` ``(U, F)`` have mean 0 and covariance 1, along `DIRECTIONS` at most."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    if len(features) < features.shape[1]:  # the covariance has at most U directions; find them where it is cheaper
        variances, samples = torch.linalg.eigh(centred @ centred.T / len(features))
        axes = centred.T @ samples / (len(features) * variances.clamp_min(1e-300)).sqrt()
    else:
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(features))
    first = max(int((variances <= SMALLEST_VARIANCE * variances[-1]).sum()), len(variances) - DIRECTIONS)
    return Basis(mean.float(), (axes[:, first:] / variances[first:].sqrt()).float())


class WhitenedProjections:
    """Optimiser groups for `projections`, and the two hooks that carry gradients in and steps out.

    A group holds one tensor ``(d, K)`` of steps. Before the optimiser's step it is 0 and its gradient is that of the
    weights in whitened coordinates; afterwards it is added to the weights, and to the bias what keeps the mean
    character where it was. The basis travels in the group, and with it in the optimiser's state.
    """

    def __init__(self, hanglyph: HanGlyph, rows: Tensor, bitmaps: Tensor) -> None:
        block1, block2 = hanglyph.all_features(rows, bitmaps)
        first, second = whitening_basis(block1), whitening_basis(block2)
        self.projections = {hanglyph.vector: second, hanglyph.skip1: first, hanglyph.skip2: second}

    @property
    def weights(self) -> set[Tensor]:
        """The weights that are trained through the groups, and must not be in another."""
        return {projection.weight for projection in self.projections}

    def groups(self, **settings: Any) -> list[dict[str, Any]]:
        """Return one optimiser group for each projection; there is no weight decay."""
        return [
            {"params": [nn.Parameter(basis.directions.new_zeros(len(projection.weight), basis.directions.shape[1]))]}
            | {"basis": tuple(basis), "weight_decay": 0.0, **settings}
            for projection, basis in self.projections.items()
        ]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the steps of `optimizer`, which has the groups, reach the projections."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for (steps, basis), projection in self._pairs(optimizer):
            steps.detach().zero_()
            weight, bias = projection.weight.grad, projection.bias.grad
            if weight is None or bias is None:
                steps.grad = None
            else:
                steps.grad = weight @ basis.directions - torch.outer(bias, basis.mean @ basis.directions)

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for (steps, basis), projection in self._pairs(optimizer):
            change = steps @ basis.directions.T
            projection.weight.add_(change)
            projection.bias.sub_(change @ basis.mean)

    def _pairs(self, optimizer: torch.optim.Optimizer) -> list[tuple[tuple[nn.Parameter, Basis], nn.Linear]]:
        groups = [group for group in optimizer.param_groups if "basis" in group]
        pairs = []
        for group, projection in zip(groups, self.projections, strict=True):
            # An optimiser's state may have been loaded to another device.
            group["basis"] = tuple(part.to(projection.weight.device) for part in group["basis"])
            pairs.append(((group["params"][0], Basis(*group["basis"])), projection))
        return pairs
