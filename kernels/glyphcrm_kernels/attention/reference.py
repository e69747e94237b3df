"""Attention with dropout: the definition, in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    p: float,
    query_lengths: list[int] | None,
    key_lengths: list[int] | None,
) -> Tensor:
    """Arguments as in `dropout_attention`."""
    if query_lengths is None or key_lengths is None:
        return _attend(query, key, value, scaling, p).contiguous()
    # One `split`, whose backward is one `cat`; slices would each make a gradient of the whole row.
    parts = zip(query.split(query_lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2), strict=True)
    return torch.cat([_attend(*part, scaling, p) for part in parts], 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, p: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, dropout_p=p, scale=scaling).transpose(1, 2)
