"""The memory order of pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(tensor: Tensor) -> Tensor:
    """Return ``(U, C, H, W)`` in channels-last memory order; under `torch.func`, where `vmap` knows none, as it is."""
    if torch._C._are_functorch_transforms_active():
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
