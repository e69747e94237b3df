"""Decoder rows of characters that were never learned, from their pictures: a ridge regression on the learned rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from glyphcrm.modeling.hanglyph import GlyphVectors

# The decoder's bias for a row that is not predicted: its probability is 0 in every dtype, and an optimiser that decays
# weights makes no NaN of it, as of -inf.
NEVER = -1e4
# Against the variance of a standardised feature. Chosen on characters held out of the fit, see docs/convergence.md.
PENALTY = 1.0


class LinearMap(NamedTuple):
    """A map from features ``(n, F)`` to targets ``(n, T)``: ``(features - centre) @ slope + mean``, float64 on CPU."""

    centre: Tensor  # (F,)
    slope: Tensor  # (F, T)
    mean: Tensor  # (T,)

    def __call__(self, features: Tensor) -> Tensor:
        """Return what the targets of other features would be."""
        return (features.cpu().double() - self.centre) @ self.slope + self.mean


def fit_ridge(features: Tensor, targets: Tensor, penalty: float) -> LinearMap:
    """Return the map that minimises the mean squared error plus a penalty on its slope.

    Features are standardised, so that the penalty is the same for each; one that does not vary is left out. The mean of
    the targets is free.

    Args:
        features: ``(n, F)``, n of 1 or more.
        targets: ``(n, T)``.
        penalty: above 0, against the squares of the slope of standardised features.
    """
    features, targets = features.cpu().double(), targets.cpu().double()  # not every device has float64
    centre, mean = features.mean(0), targets.mean(0)
    spread = features.std(0, correction=0)
    scale = torch.where(spread > 1e-12, 1 / spread, 0.0)
    standardised = (features - centre) * scale
    covariance = standardised.T @ standardised / len(features)
    covariance.diagonal().add_(penalty)
    slope = torch.linalg.solve(covariance, standardised.T @ (targets - mean) / len(features))
    return LinearMap(centre, scale.unsqueeze(1) * slope, mean)


def picture_features(vectors: GlyphVectors) -> Tensor:
    """Return what rows are predicted from, ``(n, 3d)``: the glyph vector and the two skips of each character."""
    return torch.cat(vectors, -1)


def rows_from_pictures(weight: Tensor, bias: Tensor, learned: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return decoder rows ``(n, d)`` and biases ``(n,)`` of the `wanted` characters, of the same dtype and device.

    Args:
        weight: ``(m, d)``, the learned rows.
        bias: ``(m,)``.
        learned: ``(m, F)``, the `picture_features` of the characters that these are of.
        wanted: ``(n, F)``, those of the others.
    """
    targets = torch.cat([weight, bias.unsqueeze(1)], 1)
    fitted = fit_ridge(learned, targets, PENALTY)(wanted)
    return fitted[:, :-1].to(weight), fitted[:, -1].to(bias)


def is_never(logits_or_bias: Tensor) -> Tensor:
    """Return which are of rows that are not predicted, whatever an optimiser has made of `NEVER`."""
    return logits_or_bias < NEVER / 2


def lengthen(decoder: nn.Linear, rows: int) -> None:
    """Give a decoder this many rows, new ones of characters that are never predicted; those that it has stay."""
    more = rows - decoder.out_features
    weight, bias = decoder.weight, decoder.bias
    assert more >= 0 and bias is not None
    longer = torch.cat([weight.detach(), weight.new_zeros(more, weight.shape[1])])
    decoder.weight = nn.Parameter(longer, weight.requires_grad)
    decoder.bias = nn.Parameter(torch.cat([bias.detach(), bias.new_full((more,), NEVER)]), bias.requires_grad)
    decoder.out_features = rows
