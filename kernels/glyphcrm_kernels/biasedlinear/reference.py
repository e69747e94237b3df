"""The linear layer: the definition, in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def biased_linear_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Arguments as in `biased_linear`."""
    return F.linear(x, weight, bias)
