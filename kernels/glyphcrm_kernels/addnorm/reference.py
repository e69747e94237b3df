"""Add-norm: the definition, in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels._shared.checks import check_index


def add_norm_reference(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    p: float,
    eps: float,
) -> Tensor:
    """Arguments as in `add_norm`, `p` = 0 outside of training."""
    dtype = torch.promote_types(x.dtype, residual.dtype)
    z = (F.dropout(x, p) if p else x) + residual
    if skip is not None and index is not None:
        check_index("add_norm", "index", index, skip.shape[0])
        # The backward of an embedding is the segment sum that this gather needs, and deterministic.
        z = z + F.embedding(index, skip).to(dtype)
    # Cast by hand: autocast would make the normalisation float32 anyway, but leave its result so.
    wide = arithmetic(dtype)
    return F.layer_norm(z.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), eps).to(dtype)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which results of `dtype` are computed: float32, or float64."""
    return torch.promote_types(dtype, torch.float32)
