"""Rare characters learn beside frequent ones: the gradients of vectors, scaled character by character."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glyphcrm.modeling.glyph_vectors import ranks

BETA = 0.999  # how far back the mean looks, in steps; Adam's second moment looks as far
SMALLEST = 1e-30  # a character without gradients so far has none to scale
SQUARES, POWER = "character_squares", "character_scaling"  # keys of the optimiser's first group


class CharacterScaling:
    """Divides the gradients of a character's vectors by their running root mean square, to a power.

    Adam moves each row of an embedding table by about its rate, however small the row's gradients are. HanGlyph's
    weights belong to all characters: what a step does for one of them is as large as its share of the gradient, and the
    frequent ones outvote the rest. A power of 0 leaves that as it is, with 1 all characters weigh alike. All gradients
    of each of the three vectors together keep their norm, so that clipping and rates mean what they do without.

    The squares ``(3, N)`` float32, of N atlas rows, lie in the optimiser's first group, and so in its state: a run that
    continues has them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> CharacterScaling | None:
        """Return the scaling that `add_to` has given an optimiser, None if it has not."""
        return cls(optimizer) if SQUARES in optimizer.param_groups[0] else None

    def __call__(self, ids: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return this process's gradients, scaled. It is collective: every process calls it, in every step.

        Args:
            ids: ``(P * world,)`` int64, the atlas rows of a step; where one is repeated, its gradients are 0 but once.
            gradients: ``(P, d)`` of each vector that is read, of this process's share of `ids`.
        """
        group = self._optimizer.param_groups[0]
        # An optimiser's state may have been loaded to another device.
        mean = group[SQUARES] = group[SQUARES].to(ids.device)
        own = torch.stack([gradient.square().mean(1) for gradient in gradients], 1).float()
        (squares,) = ranks.gather([own])
        mean[: len(gradients)] *= BETA
        mean[: len(gradients)].index_add_(1, ids, (1 - BETA) * squares.T)
        # That the mean begins at 0 makes all characters' smaller alike, which the norm takes back.
        factors = mean[: len(gradients), ids].clamp_min(SMALLEST) ** (-group[POWER] / 2)
        before, after = squares.T.sum(1), (squares.T * factors.square()).sum(1)
        factors *= (before / after.clamp_min(SMALLEST)).sqrt().unsqueeze(1)
        shares = ranks.own_share(factors.T.contiguous()).unbind(1)
        return [
            gradient * share.unsqueeze(1).to(gradient.dtype) for gradient, share in zip(gradients, shares, strict=True)
        ]


def add_to(optimizer: torch.optim.Optimizer, rows: int, power: float, device: torch.device) -> None:
    """Let an optimiser carry what `CharacterScaling` needs, for an atlas of so many rows."""
    optimizer.param_groups[0].update({SQUARES: torch.zeros(3, rows, device=device), POWER: power})
