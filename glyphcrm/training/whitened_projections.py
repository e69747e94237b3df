"""Adam's steps for HanGlyph's projections, taken in the coordinates of whitened features.

The features that a projection reads are never negative and mostly alike, so that one step of Adam on its weights moves
all characters together along a few directions of large variance and hardly tells them apart. In coordinates of
unit variance a step moves each character by its own share. It is a fixed change of basis for the optimiser (as a
preconditioner is); model, weights, and checkpoints are what they are without it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from glyphcrm.modeling.hanglyph import HanGlyph
from glyphcrm.modeling.whitening import Basis, whitening_basis

# Of the largest variance, and two thirds of a sample where these are more: those of its smallest variances are noise.
DIRECTIONS, SHARE_OF_SAMPLE = 1024, 2 / 3


class WhitenedProjections:
    """Optimiser groups for the three projections, and the hooks that carry gradients in and steps out.

    A group holds one tensor ``(d, K)`` of steps. Before the optimiser's step it is 0 and its gradient is that of the
    weights in whitened coordinates; afterwards it is added to the weights, and to the bias what keeps the mean
    character where it was. The basis travels in the group, and so in the optimiser's state: a run that continues has
    that of its start, whatever the convolutions have learnt since. All processes have that of the first one.
    """

    def __init__(self, hanglyph: HanGlyph, rows: Tensor, bitmaps: Tensor) -> None:
        block1, block2 = hanglyph.all_features(rows, bitmaps)
        first, second = _shared_basis(block1), _shared_basis(block2)
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
            (steps,), basis = group["params"], Basis(*group["basis"])
            if steps.shape[1] != basis.directions.shape[1]:  # a run of before with another number of them continues
                steps.data = steps.new_zeros(len(steps), basis.directions.shape[1])
            pairs.append(((steps, basis), projection))
        return pairs


def _shared_basis(features: Tensor) -> Basis:
    """Return the first process's whitening basis, in float32.

    The number of directions must not hang on the weights, as a run that continues has others: it follows from the
    shape, and directions without variance are 0, so that nothing moves along them.
    """
    most = max(DIRECTIONS, int((len(features) + 1) * SHARE_OF_SAMPLE))  # row 0, [PAD], is in no sample
    count = min(most, features.shape[1], len(features) - 1)
    mean, directions = whitening_basis(features, count)
    basis = Basis(mean.float(), F.pad(directions.float(), (count - directions.shape[1], 0)).contiguous())
    if distributed.is_available() and distributed.is_initialized():
        for part in basis:
            distributed.broadcast(part, 0)
    return basis
