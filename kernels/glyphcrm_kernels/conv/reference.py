"""Glyph convolution: the definition, in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels._shared.memory_order import channels_last
from glyphcrm_kernels._shared.operators import is_exporting
from glyphcrm_kernels._shared.sizes import known
from glyphcrm_kernels.conv.direct import direct_conv


def glyph_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> Tensor:
    """Arguments as in `glyph_conv`."""
    is_in_graph = torch.compiler.is_compiling() and not is_exporting()
    if is_in_graph and not known(x.shape[0] > 1, otherwise=False):
        y = direct_conv(x, weight, bias.to(x.dtype), padding)
    else:
        y = F.conv2d(x, weight, bias.to(x.dtype), padding=padding)
    if residual is not None:
        y = y + residual
    if relu:
        y = F.relu(y)
    y = F.max_pool2d(y, 2) if pool else y
    return y if is_exporting() else channels_last(y)  # PyTorch's order is that of x


def output_shape(x: Tensor, weight: Tensor, pool: bool, padding: int) -> tuple[int, int, int, int]:
    """Return ``(U, K, H', W')``."""
    height, width = (side + 2 * padding - weight.shape[-1] + 1 for side in x.shape[2:])
    step = 2 if pool else 1
    return x.shape[0], weight.shape[0], height // step, width // step
