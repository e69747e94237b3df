"""Add-norm: dropout, one or two residuals, layer normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    skip: Tensor | None = None,
    index: Tensor | None = None,
    p: float = 0.0,
    eps: float = 1e-12,
    training: bool = False,
) -> Tensor:
    """Return ``LayerNorm(dropout(x) + residual + skip[index])``.

    With `skip` this is the three-way add-norm that ends GlyphCRM's first two blocks (FFN output,
    attention output, glyph); without, it is BERT's. Dropout falls on `x` alone.

    Args:
        x: ``(..., d)``, the output of a sub-layer.
        residual: ``(..., d)``, what went into that sub-layer.
        weight: ``(d,)``, the gain of the normalisation.
        bias: ``(d,)``, its shift.
        skip: ``(rows, d)``, one row for each distinct character; given together with `index`.
        index: ``(...)`` int64, for each token its row in `skip`.
        p: dropout probability, used when `training`.
        eps: added to the variance.
        training: whether dropout is on.

    Returns:
        ``(..., d)`` in the dtype that `torch.nn.functional.layer_norm` gives for these inputs.

    Raises:
        ValueError: `skip` without `index` or the other way round, or shapes that do not fit.
    """
    if x.shape != residual.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}; x has {tuple(x.shape)}")
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must be ({x.shape[-1]},)")
    if (skip is None) != (index is None):
        raise ValueError("skip and index go together: give both or neither")
    z = F.dropout(x, p, training) + residual
    if skip is not None and index is not None:
        if index.shape != x.shape[:-1] or skip.shape[-1] != x.shape[-1]:
            raise ValueError(f"index {tuple(index.shape)} and skip {tuple(skip.shape)} do not fit x {tuple(x.shape)}")
        # The backward of an embedding is the segment sum that this gather needs, and deterministic.
        z = z + F.embedding(index, skip)
    return F.layer_norm(z, x.shape[-1:], weight, bias, eps)
