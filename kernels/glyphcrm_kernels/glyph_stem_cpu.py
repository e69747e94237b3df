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

from glyphcrm_kernels import cpu_library, launch

SIDE = 48
TAPS = 9
PATTERNS = 1 << TAPS


def stem_fits_cpu(rows: Tensor, weight: Tensor) -> bool:
    """Say whether `glyph_stem_cpu` can take these arguments of `glyph_stem`."""
    on_cpu = rows.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and cpu_library.differentiable_here() and cpu_library.lanes(weight.shape[0]) > 0


def _patterns(like: Tensor) -> Tensor:
    """Return ``(512, 9)``, 1 where the pattern has ink under the tap."""
    shifts = torch.arange(TAPS - 1, -1, -1, device=like.device)
    return (torch.arange(PATTERNS, device=like.device).unsqueeze(1) >> shifts & 1).to(like.dtype)


@torch.library.custom_op("glyphcrm::glyph_stem_cpu", mutates_args=())
def glyph_stem_cpu(rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Return the activation ``(U, C, 48, 48)`` and its pooled shortcut ``(U, C, 24, 24)``, both channels-last.

    Args:
        rows, bitmaps: as in `glyph_stem`.
        ink_weight: ``(9, C)`` float32, the taps of the picture.
        constant: ``(48, 48, C)`` float32, what the position channels and the bias add.
    """
    images, channels = len(rows), constant.shape[2]
    activation = launch.empty(images, SIDE, SIDE, channels, like=constant)
    pooled = launch.empty(images, SIDE // 2, SIDE // 2, channels, like=constant)
    cpu_library.call(
        "stem_forward",
        *(cpu_library.lanes(channels), torch.get_num_threads(), images, channels),
        *(rows.long().contiguous(), bitmaps.contiguous(), _patterns(constant) @ ink_weight, constant.contiguous()),
        *(activation, pooled),
    )
    return activation.permute(0, 3, 1, 2), pooled.permute(0, 3, 1, 2)


@glyph_stem_cpu.register_fake
def _(rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    images, channels = rows.shape[0], constant.shape[2]
    return (
        constant.new_empty(images, SIDE, SIDE, channels).permute(0, 3, 1, 2),
        constant.new_empty(images, SIDE // 2, SIDE // 2, channels).permute(0, 3, 1, 2),
    )


@torch.library.custom_op("glyphcrm::glyph_stem_cpu_backward", mutates_args=())
def _glyph_stem_cpu_backward(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, dactivation: Tensor, dpooled: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `ink_weight` and `constant`."""
    images, channels = dactivation.shape[:2]
    dtable = launch.empty(SIDE // 2, PATTERNS, channels, like=constant)
    dconstant = launch.empty(SIDE, SIDE, channels, like=constant)
    cpu_library.call(
        "stem_backward",
        *(cpu_library.lanes(channels), torch.get_num_threads(), images, channels),
        *(rows.long().contiguous(), bitmaps.contiguous(), _patterns(constant) @ ink_weight, constant.contiguous()),
        *(t.permute(0, 2, 3, 1).contiguous() for t in (dactivation, dpooled)),
        *(dtable, dconstant),
    )
    return _patterns(dtable).T @ dtable.sum(0), dconstant


@_glyph_stem_cpu_backward.register_fake
def _(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, dactivation: Tensor, dpooled: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(ink_weight), torch.empty_like(constant)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dactivation: Tensor, dpooled: Tensor) -> tuple[Tensor | None, ...]:
    return None, None, *_glyph_stem_cpu_backward(*ctx.saved_tensors, dactivation, dpooled)


glyph_stem_cpu.register_autograd(_backward, setup_context=_setup_context)
