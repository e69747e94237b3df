"""Stem and first convolution on a CPU: the activation between them is drawn again in the backward, not kept.

It is more than a third of what HanGlyph would keep for its backward (0.6 MB an image at C = 64), and the look-up of
stem/cpu.py makes it again, bit for bit, in some 3 % of the time of HanGlyph's backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glyphcrm_kernels._shared.operators import operator
from glyphcrm_kernels.conv import cpu as conv
from glyphcrm_kernels.stem import cpu as stem
from glyphcrm_kernels.stem.reference import taps_and_constant
from glyphcrm_kernels.stemconv.reference import one_after_the_other


def obstacle(*tensors: Tensor) -> str:
    """Return what keeps the C functions from running, or an empty string."""
    return stem.obstacle(*tensors[:5]) or conv.obstacle(*tensors[4:], None)


def run(rows: Tensor, bitmaps: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the convolution's output and the shortcut; arguments as in `glyph_stem_conv`."""
    *stem_, weight, bias = tensors
    taps, constant = taps_and_constant(*stem_)
    like_activation = constant.permute(2, 0, 1).expand(rows.shape[0], -1, -1, -1)
    if conv.drawback(like_activation, weight, bias, None, True, False, 0):
        return one_after_the_other(rows, bitmaps, *tensors, backend="cpu")
    return stem_conv_cpu(rows, bitmaps, taps, constant, weight, bias)


@operator("glyphcrm::stem_conv_cpu")
def stem_conv_cpu(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``relu(conv(activation))`` and the shortcut; the stem's arguments as in `glyph_stem_cpu`."""
    activation, pooled = stem.glyph_stem_cpu.body(rows, bitmaps, ink_weight, constant)
    return conv.fourier_conv.body(activation, weight, bias, None, True), pooled


@stem_conv_cpu.register_fake
def _(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    activation, pooled = stem.outputs(rows, bitmaps, ink_weight, constant)
    return conv.like_y(activation, weight), pooled


@operator("glyphcrm::stem_conv_cpu_backward")
def stem_conv_cpu_backward(
    dfirst: Tensor,
    dpooled: Tensor,
    first: Tensor,
    rows: Tensor,
    bitmaps: Tensor,
    ink_weight: Tensor,
    constant: Tensor,
    weight: Tensor,
    need_stem: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `ink_weight`, `constant`, `weight` and `bias`, those not needed empty."""
    activation, _ = stem.glyph_stem_cpu.body(rows, bitmaps, ink_weight, constant)
    dactivation, dweight, dbias = conv.fourier_conv_backward.body(
        dfirst, first, activation, weight, need_stem, need_weight
    )
    del activation
    if not need_stem:
        return ink_weight.new_empty(0), constant.new_empty(0), dweight, dbias
    return *stem.glyph_stem_cpu_backward.body(rows, bitmaps, ink_weight, constant, dactivation, dpooled), dweight, dbias


@stem_conv_cpu_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, ink_weight, constant, weight, need_stem, need_weight = inputs
    dink_weight, dconstant = (torch.empty_like(t) if need_stem else t.new_empty(0) for t in (ink_weight, constant))
    return dink_weight, dconstant, conv.like_dweight(weight, need_weight), weight.new_empty(len(weight))


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    *drawn, weight, _ = inputs
    ctx.save_for_backward(output[0], *drawn, weight)


def _backward(ctx: Any, dfirst: Tensor, dpooled: Tensor) -> tuple[Tensor | None, ...]:
    _, _, *need_stem, need_weight, need_bias = ctx.needs_input_grad
    found = stem_conv_cpu_backward(dfirst, dpooled, *ctx.saved_tensors, any(need_stem), need_weight)
    needed = (*need_stem, need_weight, need_bias)
    return None, None, *(gradient if need else None for gradient, need in zip(found, needed, strict=True))


stem_conv_cpu.register_autograd(_backward, setup_context=_setup_context)
