"""The basis in which features have mean 0, variance 1 and no correlation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_VARIANCE = 1e-6  # of the largest; directions below are noise


class Basis(NamedTuple):
    """Whitened features are ``(features - mean) @ directions``: ``mean (F,)``, ``directions (F, K)``, float64."""

    mean: Tensor
    directions: Tensor


def whitening_basis(features: Tensor, most: int) -> Basis:
    """Return the basis that whitens `features` ``(U, F)``, along their `most` directions of largest variance.

    Fewer if some of these have hardly any variance.
    """
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    if len(features) < features.shape[1]:  # the covariance has rank U at most; this finds it where it is cheaper
        variances, samples = torch.linalg.eigh(centred @ centred.T / len(features))  # rising
        axes = centred.T @ samples
    else:
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(features))
    noise = int((variances <= SMALLEST_VARIANCE * variances[-1]).sum())
    first = max(noise, len(variances) - most)
    directions = axes[:, first:] / axes[:, first:].norm(dim=0) / variances[first:].sqrt()
    return Basis(mean, directions)
