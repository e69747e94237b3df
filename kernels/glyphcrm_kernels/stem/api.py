"""Glyph stem: meaning, checks, and which implementation runs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from glyphcrm_kernels._shared.checks import check_devices, check_index_dtype
from glyphcrm_kernels._shared.dispatch import Implementation, Op
from glyphcrm_kernels._shared.gpus import on_no_gpu
from glyphcrm_kernels.stem import cpu, triton, triton_kernels
from glyphcrm_kernels.stem.reference import IMAGE_SIZE, PACKED_BYTES, glyph_stem_reference


def glyph_stem(
    rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return ``relu(conv3x3([image, x, y]))`` of the wanted glyphs, and that max-pooled 2x2.

    Args:
        rows: ``(U,)`` int64 or int32, the atlas rows to draw, in any order, repeated or not.
        bitmaps: ``(N, 288)`` uint8, the atlas: bit-packed 48x48 images, ink = 1.
        weight: ``(C, 3, 3, 3)``, input channels image, x, y.
        bias: ``(C,)``, in the dtype of `weight`.
        position_map: ``(2, 48, 48)``, the position channels x and y.
        backend: "auto", "triton" (C of 4, 16, 32 or 64), "cpu" (a look-up in C: float32, C a multiple of 4) or
            "reference".

    Returns:
        The activation ``(U, C, 48, 48)`` and the max-pooled shortcut ``(U, C, 24, 24)``, both in
        channels-last memory order (NHWC), in the dtype of `weight`, or in autocast's where that is on.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device; a row is not in the atlas (on a GPU: see
            `check_index`); an unknown backend, or a named one that does not take the arguments.
    """
    return OP.run(backend, rows, bitmaps, weight, bias, position_map)


def check_stem(name: str, rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor) -> None:
    """Raise `ValueError` unless the arguments of `glyph_stem` fit each other; `name` is the op's that has them."""
    if bitmaps.dtype != torch.uint8 or bitmaps.shape[1:] != (PACKED_BYTES,):
        raise ValueError(
            f"{name}: bitmaps is {tuple(bitmaps.shape)} {bitmaps.dtype}; it must be (N, {PACKED_BYTES}) torch.uint8"
        )
    if rows.ndim != 1:
        raise ValueError(f"{name}: rows has shape {tuple(rows.shape)}; it must be (U,)")
    if not weight.is_floating_point() or weight.shape[1:] != (3, 3, 3):
        raise ValueError(
            f"{name}: weight is {tuple(weight.shape)} {weight.dtype}; it must be (C, 3, 3, 3), floating point"
        )
    if bias.shape != weight.shape[:1] or bias.dtype != weight.dtype:
        raise ValueError(
            f"{name}: bias is {tuple(bias.shape)} {bias.dtype}; "
            f"it must be {tuple(weight.shape[:1])} {weight.dtype}, as weight is"
        )
    if not position_map.is_floating_point() or position_map.shape != (2, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"{name}: position_map is {tuple(position_map.shape)} {position_map.dtype}; "
            f"it must be (2, {IMAGE_SIZE}, {IMAGE_SIZE}), floating point"
        )
    check_index_dtype(name, "rows", rows)
    tensors = {"rows": rows, "bitmaps": bitmaps, "weight": weight, "bias": bias, "position_map": position_map}
    check_devices(name, tensors)


def _arguments(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors


OP = Op(
    "glyph_stem",
    glyph_stem,
    _arguments,
    functools.partial(check_stem, "glyph_stem"),
    {
        "triton": Implementation(triton.run, triton.obstacle, drawback=on_no_gpu),
        "cpu": Implementation(cpu.run, cpu.obstacle),
        "reference": Implementation(glyph_stem_reference),
    },
    triton_kernels,
)
