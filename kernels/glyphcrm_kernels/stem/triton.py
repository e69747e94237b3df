"""Glyph stem in Triton: launches, operators and derivatives.

One pass unpacks the wanted glyphs, convolves them 3x3, applies the ReLU, and pools the result 2x2.
The two position channels are the same for every glyph, so their share of the convolution, and the
bias, are one ``constant (48, 48, C)`` map; plain PyTorch computes it, and autograd differentiates it.

Bytes, at 1,700 distinct glyphs, C = 64, bfloat16:

* Forward: 288 bytes an image in, the activation (501 MB) and the shortcut (125 MB) out: 627 MB. That
  is the floor, as both are results. A program keeps its tile of the constant map in registers for
  `IMAGES_PER_PROGRAM` images, because the map (590 KB) once an image would be 1 GB from the L2 cache.
* Kept for the backward: the activation and nothing of its own; it stays alive anyway as the input of
  the next convolution. From it follow where the ReLU was open and which pixel of a window was the maximum.
* Backward: the activation, its gradient, the shortcut's gradient in: 1,128 MB; the partial sums
  out (0.6 MB a split, 29 MB with their addition on an H100). The activation could be computed
  once more from the bits, which would save its 501 MB (44 %) for nine multiply-adds an element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glyphcrm_kernels._shared import buffers, targets
from glyphcrm_kernels._shared.checks import check_index
from glyphcrm_kernels._shared.gpus import triton_obstacle
from glyphcrm_kernels._shared.launch import Plan
from glyphcrm_kernels._shared.memo import remembered
from glyphcrm_kernels._shared.operators import operator
from glyphcrm_kernels._shared.optional_triton import triton
from glyphcrm_kernels._shared.targets import Target, dot_arguments, target_of
from glyphcrm_kernels.stem import tiles
from glyphcrm_kernels.stem import triton_kernels as kernels
from glyphcrm_kernels.stem.reference import IMAGE_SIZE, POOLED_SIZE, TAPS, result_dtype, taps_and_constant


def obstacle(rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor) -> str:
    """Return what keeps the kernels from running, or an empty string."""
    if found := triton_obstacle(rows=rows, weight=weight, bias=bias, position_map=position_map):
        return found
    if weight.shape[0] in tiles.CHANNELS:
        return ""
    takes = ", ".join(map(str, tiles.CHANNELS))
    return f"weight has {weight.shape[0]} output channels; the Triton kernels take {takes}: change them"


def run(rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return activation and shortcut; arguments as in `glyph_stem`."""
    check_index("glyph_stem", "rows", rows, bitmaps.shape[0])
    taps, constant = taps_and_constant(weight, bias, position_map)
    found: tuple[Tensor, Tensor] = _glyph_stem(
        rows.contiguous(), bitmaps.contiguous(), taps, constant, result_dtype(weight)
    )
    return found


@remembered
def _forward_plan(target: Target, images: int, atlas_rows: int, channels: int, dtype: torch.dtype) -> Plan:
    windows, warps = tiles.tile(target, channels, dtype)
    per_program = tiles.IMAGES_PER_PROGRAM
    return Plan(
        kernels._glyph_stem_fwd_kernel,
        (POOLED_SIZE * POOLED_SIZE // windows, triton.cdiv(images, per_program)),
        (images, atlas_rows),
        {"IMAGE_SIZE": IMAGE_SIZE, "C": channels, "Q": windows, "IMAGES": per_program},
        warps,
        num_stages=1,
    )


@operator("glyphcrm::glyph_stem")
def _glyph_stem(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    activation, pooled = _outputs(rows, bitmaps, ink_weight, constant, dtype)
    plan = _forward_plan(target_of(rows.device), rows.shape[0], bitmaps.shape[0], constant.shape[2], dtype)
    plan.start(rows, bitmaps, ink_weight, constant, activation, pooled)
    return activation, pooled


@_glyph_stem.register_fake
def _outputs(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    images, channels = rows.shape[0], constant.shape[2]
    activation = buffers.empty_nhwc(images, channels, IMAGE_SIZE, IMAGE_SIZE, like=constant, dtype=dtype)
    return activation, buffers.empty_nhwc(images, channels, POOLED_SIZE, POOLED_SIZE, like=constant, dtype=dtype)


@remembered
def _backward_plan(
    target: Target, multiprocessors: int, images: int, atlas_rows: int, channels: int, dtype: torch.dtype
) -> Plan:
    windows, warps = tiles.tile(target, channels, dtype)
    splits, per_image = tiles.backward_partials(target, multiprocessors, images, channels, dtype)
    return Plan(
        kernels._glyph_stem_bwd_kernel,
        (per_image, splits),
        (images, triton.cdiv(images, splits), atlas_rows),
        {"IMAGE_SIZE": IMAGE_SIZE, "C": channels, "Q": windows, **dot_arguments(target, dtype)},
        warps,
        num_stages=tiles.BACKWARD_STAGES,
    )


@operator("glyphcrm::glyph_stem_backward")
def _glyph_stem_backward(
    rows: Tensor, bitmaps: Tensor, activation: Tensor, dactivation: Tensor, dpooled: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `ink_weight` and `constant`, in `dtype`."""
    images, channels = activation.shape[:2]
    device = activation.device
    sizes = (images, bitmaps.shape[0], channels)
    plan = _backward_plan(target_of(device), targets.multiprocessors(device), *sizes, activation.dtype)
    per_image, splits = plan.grid
    dink_weight = buffers.empty(splits, per_image, TAPS, channels, like=activation, dtype=dtype)
    dconstant = buffers.empty(splits, IMAGE_SIZE, IMAGE_SIZE, channels, like=activation, dtype=dtype)
    # The kept activation as well: hooks may have brought it back in another order (`save_on_cpu` does).
    nhwc = (t.contiguous(memory_format=torch.channels_last) for t in (activation, dactivation, dpooled))
    plan.start(rows, bitmaps, *nhwc, dink_weight, dconstant)
    return dink_weight.sum((0, 1)), dconstant.sum(0)


@_glyph_stem_backward.register_fake
def _(
    rows: Tensor, bitmaps: Tensor, activation: Tensor, dactivation: Tensor, dpooled: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    channels = activation.shape[1]
    dconstant = activation.new_empty(IMAGE_SIZE, IMAGE_SIZE, channels, dtype=dtype)
    return activation.new_empty(TAPS, channels, dtype=dtype), dconstant


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, bitmaps, _, constant, _ = inputs
    ctx.save_for_backward(rows, bitmaps, output[0])
    ctx.dtype = constant.dtype


def _backward(ctx: Any, dactivation: Tensor, dpooled: Tensor) -> tuple[Tensor | None, ...]:
    rows, bitmaps, activation = ctx.saved_tensors
    dink_weight, dconstant = _glyph_stem_backward(rows, bitmaps, activation, dactivation, dpooled, ctx.dtype)
    return None, None, dink_weight, dconstant, None


_glyph_stem.register_autograd(_backward, setup_context=_setup_context)
