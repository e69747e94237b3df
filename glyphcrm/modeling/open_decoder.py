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
PENALTY = 3.0
# How much a learned row counts in the fit: its frequency, by what the bias has learned of it, to this power.
WEIGHT_POWER = 0.5


class LinearMap(NamedTuple):
    """A map from features ``(n, F)`` to targets ``(n, T)``: ``(features - centre) @ slope + mean``, all float64."""

    centre: Tensor  # (F,)
    slope: Tensor  # (F, T)
    mean: Tensor  # (T,)

    def __call__(self, features: Tensor) -> Tensor:
        """Return what the targets of other features would be."""
        return (features.double() - self.centre) @ self.slope + self.mean


def fit_ridge(features: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> LinearMap:
    """Return the map that minimises the weighted mean squared error plus a penalty on its slope.

    Features are standardised by their weighted means and variances, so that the penalty is the same for each; the mean
    of the targets is free. One that does not vary is left out.

    Args:
        features: ``(n, F)``, n of 1 or more.
        targets: ``(n, T)``.
        weights: ``(n,)``, above 0; only their ratios matter.
        penalty: above 0, against the squares of the slope of standardised features.
    """
    features, targets = features.double(), targets.double()
    shares = (weights.double() / weights.double().sum()).unsqueeze(1)
    centre, mean = (shares * features).sum(0), (shares * targets).sum(0)
    spread = (shares * (features - centre).square()).sum(0).sqrt()
    scale = torch.where(spread > 1e-12, 1 / spread, 0.0)
    standardised = (features - centre) * scale
    covariance = standardised.T @ (shares * standardised)
    covariance.diagonal().add_(penalty)
    slope = torch.linalg.solve(covariance, standardised.T @ (shares * (targets - mean)))
    return LinearMap(centre, scale.unsqueeze(1) * slope, mean)


def picture_features(vectors: GlyphVectors) -> Tensor:
    """Return what rows are predicted from, ``(n, 3d)``: the glyph vector and the two skips of each character."""
    return torch.cat(vectors, -1)


def rows_from_pictures(weight: Tensor, bias: Tensor, learned: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return decoder rows ``(n, d)`` and biases ``(n,)`` of the `wanted` characters, in the decoder's dtype.

    Args:
        weight: ``(m, d)``, the learned rows.
        bias: ``(m,)``.
        learned: ``(m, F)``, the `picture_features` of the characters that these are of.
        wanted: ``(n, F)``, those of the others.
    """
    targets = torch.cat([weight, bias.unsqueeze(1)], 1)
    weights = (WEIGHT_POWER * (bias.double() - bias.max())).exp()
    fitted = fit_ridge(learned, targets, weights, PENALTY)(wanted)
    return fitted[:, :-1].to(weight.dtype), fitted[:, -1].to(bias.dtype)


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
