"""Decoder rows of characters that were never learned: a ridge regression on the learned ones.

They come from the pictures, and from how often the characters stand in a text, where that is known. Frequency is most
of what a learned row tells from another one, and a picture says little of it: see docs/convergence.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glyphcrm.modeling.hanglyph import GlyphVectors

# The decoder's bias for a row that is not predicted: its probability is 0 in every dtype, and an optimiser that decays
# weights makes no NaN of it, as of -inf.
NEVER = -1e4
# Against the variance of a standardised feature. Chosen on characters held out of the fit, see docs/convergence.md.
PENALTY = 1.0
FREE = 1e-6  # on frequencies: next to none, but an answer where two of their features are one
KNOTS = (1 / 3, 2 / 3)  # of the learned characters


class LinearMap(NamedTuple):
    """A map from features ``(n, F)`` to targets ``(n, T)``: ``(features - centre) @ slope + mean``, float64 on CPU."""

    centre: Tensor  # (F,)
    slope: Tensor  # (F, T)
    mean: Tensor  # (T,)

    def __call__(self, features: Tensor) -> Tensor:
        """Return what the targets of other features would be."""
        return (features.cpu().double() - self.centre) @ self.slope + self.mean


def fit_ridge(features: Tensor, targets: Tensor, penalty: float | Tensor) -> LinearMap:
    """Return the map that minimises the mean squared error plus a penalty on its slope.

    Features are standardised, so that the penalty is the same for each; one that does not vary is left out. The mean of
    the targets is free.

    Args:
        features: ``(n, F)``, n of 1 or more.
        targets: ``(n, T)``.
        penalty: above 0, against the squares of the slope of standardised features; one, or ``(F,)`` float64 on CPU.
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


def frequency_features(counts: Tensor, of_learned: Tensor) -> Tensor:
    """Return ``(n, 3)`` float64: the logarithms of `counts` ``(n,)``, and how far each is above two of those learned.

    A bent line, that is, and a straight one beyond them: counts may be lower than any of a learned character.
    """
    logs, learned = (torch.log1p(which.cpu().double()) for which in (counts, of_learned))
    knots = torch.quantile(learned, learned.new_tensor(KNOTS))
    return torch.cat([logs.unsqueeze(1), (logs.unsqueeze(1) - knots).clamp_min(0)], 1)


def fitted_rows(
    weight: Tensor, bias: Tensor, learned: Tensor, wanted: Tensor, counts: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return decoder rows ``(n, d)`` and biases ``(n,)`` of the `wanted` characters, of the same dtype and device.

    Args:
        weight: ``(m, d)``, the learned rows.
        bias: ``(m,)``.
        learned: ``(m, F)``, the `picture_features` of the characters that these are of.
        wanted: ``(n, F)``, those of the others.
        counts: how often the learned ones ``(m,)`` and the others ``(n,)`` stand in a text.
    """
    targets = torch.cat([weight, bias.unsqueeze(1)], 1)
    known, new = (features.cpu().double() for features in (learned, wanted))  # not every device has float64
    penalty = known.new_full((known.shape[1],), PENALTY)
    if counts is not None:
        known, new = (
            torch.cat([features, frequency_features(of, counts[0])], 1)
            for features, of in zip((known, new), counts, strict=True)
        )
        penalty = F.pad(penalty, (0, 1 + len(KNOTS)), value=FREE)
    fitted = fit_ridge(known, targets, penalty)(new)
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
