"""Glyph stem on a CPU, forward and backward, in float32: a look-up instead of a convolution.

The 3x3 window of ink around a pixel is one of 512 patterns, so its share of the convolution is a row of a table
``(512, C)``: the sum of the taps under each pattern's ink. A pixel then costs an addition to the constant map and the
ReLU, and the pooled shortcut is made while its four pixels are in registers. The backward adds each pixel's gradient
to the row of its pattern; the taps' gradients are sums of rows. It makes the activation again, so nothing of an image
is kept for it. Both passes are bound by memory: they move each activation, or its gradient, once, 0.7 MB an image at
C = 64. The C functions are in csrc/stem.c.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glyphcrm_kernels._shared import buffers, cpu_library
from glyphcrm_kernels._shared.checks import index_error
from glyphcrm_kernels._shared.cpu_library import BadIndexError, cpu_obstacle
from glyphcrm_kernels._shared.memo import remembered
from glyphcrm_kernels._shared.operators import operator
from glyphcrm_kernels.stem.reference import IMAGE_SIZE, POOLED_SIZE, TAPS, result_dtype, taps_and_constant

PATTERNS = 1 << TAPS


def obstacle(rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor) -> str:
    """Return what keeps the C functions from running, or an empty string."""
    narrow = result_dtype(weight) != weight.dtype
    found = cpu_obstacle(weight, bias, channels=(weight.shape[0],))
    return found or ("the C functions give float32; switch autocast off" if narrow else "")


def run(rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return activation and shortcut; arguments as in `glyph_stem`."""
    return glyph_stem_cpu(rows, bitmaps, *taps_and_constant(weight, bias, position_map))


@remembered
def _patterns() -> Tensor:
    """Return ``(512, 9)`` float32, 1 where the pattern has ink under the tap."""
    shifts = torch.arange(TAPS - 1, -1, -1, device="cpu")
    return (torch.arange(PATTERNS, device="cpu").unsqueeze(1) >> shifts & 1).to(torch.float32)


def _call(name: str, rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, *others: Tensor) -> None:
    channels, atlas_rows = constant.shape[2], bitmaps.shape[0]
    sizes = (cpu_library.lanes(channels), torch.get_num_threads(), rows.shape[0], channels, atlas_rows)
    table, wanted = _patterns() @ ink_weight, rows.long().contiguous()
    try:
        cpu_library.call(name, *sizes, wanted, bitmaps.contiguous(), table, constant.contiguous(), *others)
    except BadIndexError:
        raise index_error("glyph_stem", "rows", rows, atlas_rows) from None


@operator("glyphcrm::glyph_stem_cpu")
def glyph_stem_cpu(rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Return the activation ``(U, C, 48, 48)`` and its pooled shortcut ``(U, C, 24, 24)``, both channels-last.

    Args:
        rows, bitmaps: as in `glyph_stem`.
        ink_weight: ``(9, C)`` float32, the taps of the picture.
        constant: ``(48, 48, C)`` float32, what the position channels and the bias add.
    """
    activation, pooled = outputs(rows, bitmaps, ink_weight, constant)
    _call("stem_forward", rows, bitmaps, ink_weight, constant, *(t.permute(0, 2, 3, 1) for t in (activation, pooled)))
    return activation, pooled


@glyph_stem_cpu.register_fake
def outputs(rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    images, channels = rows.shape[0], constant.shape[2]
    activation = buffers.empty_nhwc(images, channels, IMAGE_SIZE, IMAGE_SIZE, like=constant)
    return activation, buffers.empty_nhwc(images, channels, POOLED_SIZE, POOLED_SIZE, like=constant)


@operator("glyphcrm::glyph_stem_cpu_backward")
def glyph_stem_cpu_backward(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, dactivation: Tensor, dpooled: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `ink_weight` and `constant`."""
    channels = dactivation.shape[1]
    dtable = buffers.empty(POOLED_SIZE, PATTERNS, channels, like=constant)
    dconstant = buffers.empty(IMAGE_SIZE, IMAGE_SIZE, channels, like=constant)
    gradients = (t.permute(0, 2, 3, 1).contiguous() for t in (dactivation, dpooled))
    _call("stem_backward", rows, bitmaps, ink_weight, constant, *gradients, dtable, dconstant)
    return _patterns().T @ dtable.sum(0), dconstant


@glyph_stem_cpu_backward.register_fake
def _(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, dactivation: Tensor, dpooled: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(ink_weight), torch.empty_like(constant)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dactivation: Tensor, dpooled: Tensor) -> tuple[Tensor | None, ...]:
    return None, None, *glyph_stem_cpu_backward(*ctx.saved_tensors, dactivation, dpooled)


glyph_stem_cpu.register_autograd(_backward, setup_context=_setup_context)
