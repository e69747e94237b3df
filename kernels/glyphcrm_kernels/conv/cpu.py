"""Fourier convolution: glyph_conv's large filters on a CPU, forward and backward, in float32.

A valid convolution of an n x n image with a k x k filter is a product of their discrete Fourier transforms of size n:
what wraps around lands outside of the result. Per pixel and pair of channels the direct sum takes k^2 = 81
multiplications, the products at n (n/2 + 1) frequencies take three, and the transforms are shared by all channels.
So for 9x9 filters the floor falls from 530 to 20 million multiply-adds an image (C = 64, n = 48), plus 2 (forward)
to 5 (with backward) transforms, 4 million floating-point operations each.

    y        = F^-1( sum over c   X[c] conj(W[k, c]) )
    dx       = F^-1( sum over k   G[k] W[k, c]       )
    dweight  = F^-1( sum over u   X[u, c] conj(G[u, k]) )

The arithmetic is C (csrc/fourier.c, built by setup.py if there is a compiler, called through ctypes without the
interpreter's lock): PyTorch's transforms want the pixels of a channel side by side, and changing the memory order
there and back costs more than they gain. Here the channels stay the fastest index, and every number of the transform
is a vector of channels. Images are taken in blocks, so that spectra stay small and the weight's are read once a block.

Kept for the backward: x and y, which the layers around keep anyway; the spectrum of x is computed again, a tenth of the
backward's time, as keeping it would double the memory. No sum depends on the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels._shared import buffers, cpu_library
from glyphcrm_kernels._shared.cpu_library import cpu_obstacle
from glyphcrm_kernels._shared.operators import operator
from glyphcrm_kernels._shared.sizes import known
from glyphcrm_kernels.conv.reference import glyph_conv_reference

SMALLEST_FILTER = 5  # from here on the transforms cost less than they save
FEWEST_IMAGES = 2  # one image is not worth transforming the filters
RADICES = (2, 3, 5)
BLOCK_BYTES = 48 << 20  # of a block's spectrum
LONGEST_BLOCK = 64


def _has_fast_transform(n: int) -> bool:
    for radix in RADICES:
        while n % radix == 0:
            n //= radix
    return n == 1


def obstacle(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *settings: object) -> str:
    """Return what keeps the C functions from running, or an empty string."""
    return cpu_obstacle(x, weight, bias, residual)


def drawback(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> str:
    """Return why PyTorch's direct sum takes these arguments, or takes less time for them, or an empty string."""
    images, inputs, height, width = x.shape
    outputs, _, size, _ = weight.shape
    if padding or height != width or not _has_fast_transform(height):
        return "the transforms take square images without padding, with no prime factor above 5"
    if size < SMALLEST_FILTER or known(images < FEWEST_IMAGES, otherwise=False):
        return "for small filters and for one image the direct sum takes less time"
    return cpu_obstacle(x, weight, bias, residual, channels=(inputs, outputs))


def run(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> Tensor:
    """Return y, by the direct sum where the Fourier domain has a drawback; arguments as in `glyph_conv`."""
    if drawback(x, weight, bias, residual, relu, pool, padding):
        return glyph_conv_reference(x, weight, bias, residual, relu, pool, padding)
    y = fourier_conv(x, weight, bias, residual, relu)
    return F.max_pool2d(y, 2) if pool else y


def _nhwc(tensor: Tensor | None) -> Tensor | None:
    """Return ``(U, H, W, C)``, contiguous."""
    return None if tensor is None else tensor.permute(0, 2, 3, 1).contiguous()


def _block(images: int, n: int, channels: int) -> int:
    """Return how many images are transformed together."""
    bytes_an_image = 8 * n * (n // 2 + 1) * channels
    return max(1, min(images, LONGEST_BLOCK, BLOCK_BYTES // bytes_an_image))


@operator("glyphcrm::fourier_conv")
def fourier_conv(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """Return ``conv(x) + bias + residual``, with `relu` clamped at 0; where there is no `drawback`."""
    images, inputs, n, _ = x.shape
    outputs, _, size, _ = weight.shape
    y = buffers.empty_nhwc(images, outputs, n - size + 1, n - size + 1, like=x)
    block = _block(images, n, max(inputs, outputs))
    filters = weight.permute(1, 2, 3, 0).contiguous()
    sizes = (cpu_library.lanes(inputs, outputs), torch.get_num_threads(), block, images, n, inputs, outputs, size)
    cpu_library.call("fourier_forward", *sizes, relu, _nhwc(x), filters, bias.contiguous(), _nhwc(residual), _nhwc(y))
    return y


@fourier_conv.register_fake
def like_y(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    side = x.shape[2] - weight.shape[2] + 1
    return buffers.empty_nhwc(x.shape[0], weight.shape[0], side, side, like=x)


@operator("glyphcrm::fourier_conv_backward")
def fourier_conv_backward(
    dy: Tensor, gate: Tensor | None, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; the first two are empty where they are not needed.

    `dy` counts where `gate`, the output of the ReLU, is above 0.
    """
    images, inputs, n, _ = x.shape
    outputs, _, size, _ = weight.shape
    block = _block(images, n, max(inputs, outputs))
    dx = buffers.empty(*((images, n, n, inputs) if need_x else (0,)), like=x)
    dweight = buffers.empty(*((inputs, size, size, outputs) if need_weight else (0,)), like=x)
    dbias = buffers.empty(outputs, like=x)
    sizes = (cpu_library.lanes(inputs, outputs), torch.get_num_threads(), block, images, n, inputs, outputs, size)
    read = (_nhwc(dy), _nhwc(gate), _nhwc(x), _nhwc(weight))
    written = (dx if need_x else None, dweight if need_weight else None, dbias)
    cpu_library.call("fourier_backward", *sizes, *read, *written)
    return (
        dx.permute(0, 3, 1, 2) if need_x else dx,
        dweight.permute(3, 0, 1, 2) if need_weight else dweight,
        dbias,
    )


@fourier_conv_backward.register_fake
def _(
    dy: Tensor, gate: Tensor | None, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2) if need_x else x.new_empty(0)
    return dx, like_dweight(weight, need_weight), weight.new_empty(len(weight))


def like_dweight(weight: Tensor, needed: bool) -> Tensor:
    """Return a tensor of the shape and memory order of the weight's gradient, empty if it is not needed."""
    return weight.new_empty(weight.permute(1, 2, 3, 0).shape).permute(3, 0, 1, 2) if needed else weight.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, _, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gate = ctx.saved_tensors
    need_x, need_weight, need_bias, need_residual, _ = ctx.needs_input_grad
    dresidual = None
    if need_residual:
        dy = dresidual = dy if gate is None else torch.ops.aten.threshold_backward(dy, gate, 0)
        gate = None
    if not (need_x or need_weight or need_bias):
        return None, None, None, dresidual, None
    dx, dweight, dbias = fourier_conv_backward(dy, gate, x, weight, need_x, need_weight)
    return dx if need_x else None, dweight if need_weight else None, dbias if need_bias else None, dresidual, None


fourier_conv.register_autograd(_backward, setup_context=_setup_context)
