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
from torch import Tensor

from glyphcrm_kernels import cpu_library, launch

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


def fourier_pays(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, padding: int) -> bool:
    """Say whether `fourier_conv` can take these arguments of `glyph_conv`, and will be faster than PyTorch's own."""
    if any(t is not None and (t.device.type != "cpu" or t.dtype != torch.float32) for t in (x, weight, bias, residual)):
        return False
    images, inputs, height, width = x.shape
    outputs, _, size, _ = weight.shape
    return (
        padding == 0
        and size >= SMALLEST_FILTER
        and height == width
        and images >= FEWEST_IMAGES
        and _has_fast_transform(height)
        and cpu_library.differentiable_here()
        and cpu_library.lanes(inputs, outputs) > 0
    )


def _nhwc(tensor: Tensor | None) -> Tensor | None:
    """Return ``(U, H, W, C)``, contiguous."""
    return None if tensor is None else tensor.permute(0, 2, 3, 1).contiguous()


def _block(images: int, n: int, channels: int) -> int:
    """Return how many images are transformed together."""
    bytes_an_image = 8 * n * (n // 2 + 1) * channels
    return min(images, LONGEST_BLOCK, max(1, BLOCK_BYTES // bytes_an_image))


@torch.library.custom_op("glyphcrm::fourier_conv", mutates_args=())
def fourier_conv(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """Return ``conv(x) + bias + residual``, with `relu` clamped at 0; see `glyph_conv` and `fourier_pays`."""
    images, inputs, n, _ = x.shape
    outputs, _, size, _ = weight.shape
    y = launch.empty(images, n - size + 1, n - size + 1, outputs, like=x)
    block = _block(images, n, max(inputs, outputs))
    filters = weight.permute(1, 2, 3, 0).contiguous()
    sizes = (cpu_library.lanes(inputs, outputs), torch.get_num_threads(), block, images, n, inputs, outputs, size)
    cpu_library.call("fourier_forward", *sizes, relu, _nhwc(x), filters, bias.contiguous(), _nhwc(residual), y)
    return y.permute(0, 3, 1, 2)


@fourier_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    side = x.shape[2] - weight.shape[2] + 1
    return x.new_empty(x.shape[0], side, side, weight.shape[0]).permute(0, 3, 1, 2)


@torch.library.custom_op("glyphcrm::fourier_conv_backward", mutates_args=())
def _fourier_conv_backward(
    dy: Tensor, gate: Tensor | None, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; the first two are empty where they are not needed.

    `dy` counts where `gate`, the output of the ReLU, is above 0.
    """
    images, inputs, n, _ = x.shape
    outputs, _, size, _ = weight.shape
    block = _block(images, n, max(inputs, outputs))
    dx = launch.empty(*((images, n, n, inputs) if need_x else (0,)), like=x)
    dweight = launch.empty(*((inputs, size, size, outputs) if need_weight else (0,)), like=x)
    dbias = launch.empty(outputs, like=x)
    sizes = (cpu_library.lanes(inputs, outputs), torch.get_num_threads(), block, images, n, inputs, outputs, size)
    read = (_nhwc(dy), _nhwc(gate), _nhwc(x), _nhwc(weight))
    written = (dx if need_x else None, dweight if need_weight else None, dbias)
    cpu_library.call("fourier_backward", *sizes, *read, *written)
    return (
        dx.permute(0, 3, 1, 2) if need_x else dx,
        dweight.permute(3, 0, 1, 2) if need_weight else dweight,
        dbias,
    )


@_fourier_conv_backward.register_fake
def _(
    dy: Tensor, gate: Tensor | None, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    images, inputs, n, _ = x.shape
    outputs, _, size, _ = weight.shape
    dx = x.new_empty(images, n, n, inputs).permute(0, 3, 1, 2) if need_x else x.new_empty(0)
    dweight = x.new_empty(inputs, size, size, outputs).permute(3, 0, 1, 2) if need_weight else x.new_empty(0)
    return dx, dweight, x.new_empty(outputs)


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
    dx, dweight, dbias = _fourier_conv_backward(dy, gate, x, weight, need_x, need_weight)
    return dx if need_x else None, dweight if need_weight else None, dbias if need_bias else None, dresidual, None


fourier_conv.register_autograd(_backward, setup_context=_setup_context)
