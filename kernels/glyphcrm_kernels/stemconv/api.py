"""Stem and first convolution: meaning, checks, and which implementation runs."""

from __future__ import annotations

import functools

from torch import Tensor

from glyphcrm_kernels._shared.checks import check_devices
from glyphcrm_kernels._shared.dispatch import Implementation, Op
from glyphcrm_kernels._shared.gpus import hopper_obstacle, on_no_gpu
from glyphcrm_kernels.conv import hopper_tiles, record
from glyphcrm_kernels.conv import triton as conv_triton
from glyphcrm_kernels.stem import triton as stem_triton
from glyphcrm_kernels.stem.api import check_stem
from glyphcrm_kernels.stem.reference import IMAGE_SIZE, result_dtype
from glyphcrm_kernels.stemconv import cpu
from glyphcrm_kernels.stemconv.reference import one_after_the_other


def glyph_stem_conv(
    rows: Tensor,
    bitmaps: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_map: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return ``relu(conv(activation))`` of the activation of `glyph_stem`, and its pooled shortcut.

    On a CPU the activation is not kept for the backward, but drawn again.

    Args:
        rows, bitmaps, weight, bias, position_map: as in `glyph_stem`.
        conv_weight: ``(K, C, k, k)`` in the dtype of `weight`, k up to 48.
        conv_bias: ``(K,)``.
        backend: "auto", "hopper", "triton", "cpu" (C) or "reference"; what `glyph_stem` and `glyph_conv` take.

    Returns:
        ``(U, K, 49 - k, 49 - k)`` and ``(U, C, 24, 24)``; dtype and memory order as in `glyph_stem`.

    Raises:
        ValueError: as in `glyph_stem` and `glyph_conv`.
    """
    return OP.run(backend, rows, bitmaps, weight, bias, position_map, conv_weight, conv_bias)


def _arguments(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors


def _check(
    rows: Tensor,
    bitmaps: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_map: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
) -> None:
    check_stem("glyph_stem_conv", rows, bitmaps, weight, bias, position_map)
    channels, outputs = len(weight), len(conv_weight)
    if conv_weight.dim() != 4 or conv_weight.shape[1] != channels or conv_weight.shape[2] != conv_weight.shape[3]:
        shape = tuple(conv_weight.shape)
        raise ValueError(f"glyph_stem_conv: conv_weight has shape {shape}; it must be (K, {channels}, k, k)")
    size = conv_weight.shape[2]
    if not 0 < size <= IMAGE_SIZE:
        raise ValueError(f"glyph_stem_conv: conv_weight has {size}x{size} filters; they must be 1x1 to 48x48")
    if conv_bias.shape != (outputs,):
        raise ValueError(f"glyph_stem_conv: conv_bias has shape {tuple(conv_bias.shape)}; it must be ({outputs},)")
    check_devices("glyph_stem_conv", {"weight": weight, "conv_weight": conv_weight, "conv_bias": conv_bias})


def _triton_obstacle(rows: Tensor, bitmaps: Tensor, weight: Tensor, *others: Tensor) -> str:
    *stem, conv_weight, _ = others
    shape = rows.shape[0], len(weight), IMAGE_SIZE, IMAGE_SIZE
    return stem_triton.obstacle(rows, bitmaps, weight, *stem) or conv_triton.size_obstacle(
        shape, conv_weight.shape, False, 0
    )


def _hopper_obstacle(rows: Tensor, *others: Tensor) -> str:
    return hopper_obstacle(rows) or _triton_obstacle(rows, *others)


def _hopper_drawback(
    rows: Tensor,
    bitmaps: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_map: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
) -> str:
    shape = rows.shape[0], len(weight), IMAGE_SIZE, IMAGE_SIZE
    return (
        on_no_gpu(rows)
        or hopper_tiles.uncovered(shape, result_dtype(weight), conv_weight.shape, False, 0)
        or record.drawback(rows)
    )


OP = Op(
    "glyph_stem_conv",
    glyph_stem_conv,
    _arguments,
    _check,
    {
        "hopper": Implementation(
            functools.partial(one_after_the_other, backend="hopper"), _hopper_obstacle, drawback=_hopper_drawback
        ),
        "triton": Implementation(
            functools.partial(one_after_the_other, backend="triton"), _triton_obstacle, drawback=on_no_gpu
        ),
        "cpu": Implementation(cpu.run, cpu.obstacle),
        "reference": Implementation(one_after_the_other),
    },
)
