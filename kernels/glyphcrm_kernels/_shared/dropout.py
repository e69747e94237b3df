"""Dropout as the kernels have it: 16 random bits an element, from Philox4x32-7, a function of a seed and a place."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_below(p: float) -> int:
    """Return the number of 65,536ths nearest to `p`: what the 16 random bits of an element are compared with."""
    return min(round(p * 65536), 65535)


def new_seed(device: torch.device) -> Tensor:
    """Return ``(1,)`` int64, drawn on `device` from PyTorch's generator: no wait, and checkpointing draws it again."""
    return torch.randint(2**63 - 1, (1,), device=device)
