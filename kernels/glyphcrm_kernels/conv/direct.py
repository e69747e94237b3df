"""PyTorch's own convolution as an operator, for graphs that do not know how many images there will be.

PyTorch's compilers then take the output for NCHW, but it will be NHWC, and they fail when the graph runs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels._shared import buffers
from glyphcrm_kernels._shared.operators import operator


@operator("glyphcrm::direct_conv")
def direct_conv(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Return ``conv(x) + bias`` in channels-last memory order; all of one dtype."""
    return F.conv2d(x, weight, bias, padding=padding).contiguous(memory_format=torch.channels_last)


@direct_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    height, width = (side + 2 * padding - weight.shape[-1] + 1 for side in x.shape[2:])
    return buffers.empty_nhwc(x.shape[0], weight.shape[0], height, width, like=x)


@operator("glyphcrm::direct_conv_backward")
def direct_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, padding: int, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (empty if it is not needed), weight and bias."""
    sizes = ([len(weight)], [1, 1], [padding, padding], [1, 1], False, [0, 0], 1)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(dy, x, weight, *sizes, [need_x, True, True])
    dx = dx.contiguous(memory_format=torch.channels_last) if need_x else x.new_empty(0)
    return dx, dweight.contiguous(), dbias


@direct_conv_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, padding: int, need_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    dx = buffers.empty_nhwc(*x.shape, like=x) if need_x else x.new_empty(0)
    return dx, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    need_x = ctx.needs_input_grad[0]
    dx, dweight, dbias = direct_conv_backward(dy, *ctx.saved_tensors, ctx.padding, need_x)
    return dx if need_x else None, dweight, dbias, None


direct_conv.register_autograd(_backward, setup_context=_setup_context)
