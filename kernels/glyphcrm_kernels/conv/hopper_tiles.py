"""Glyph convolution: what the Hopper kernels cover, and what a program of theirs does.

9x9 filters, 64 channels in and out, 16 bits, square images. Timed as prototypes on an H200 with Triton 3.6 in bfloat16
(docs/measurements.md). The first data gradient was timed with eight slots, 637 TFLOP/s, which spill with Triton 3.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glyphcrm_kernels._shared import targets
from glyphcrm_kernels._shared.sizes import known

SIZE = 9
CHANNELS = 64
DTYPES = (torch.float16, torch.bfloat16)


class Tile(NamedTuple):
    """The work of a program of `_glyph_conv_hopper_fwd_kernel`: an output row of some images; pooled, 8 columns.

    Attributes:
        minor: pixels of a column of that row, one an image; pooled, of a row of those columns, 8 an image.
        channels: of x and of the weights that come at a time, 32 or 64.
        stages: of x, each one row of input.
        slots: of weights, each one place of the filter. With nine, their numbers are constants in the code.
        warps: 4, or 8 which share the pixels.
    """

    minor: int
    channels: int
    stages: int
    slots: int
    warps: int


class WeightTile(NamedTuple):
    """The work of a step of `_glyph_conv_hopper_wgrad_kernel`, whose programs have a row of the filter each.

    Attributes:
        columns: of the gradient, of 16 images; a multiple of 4.
        stages: of x and gradient together.
        ahead: matrix products that may be unfinished when the next step begins.
    """

    columns: int
    stages: int
    ahead: int


# By the side of what is read; TFLOP/s behind it.
FORWARD_TILES = {
    48: Tile(minor=8, channels=32, stages=3, slots=6, warps=4),  # 760
    40: Tile(minor=8, channels=32, stages=3, slots=6, warps=4),  # 797, in another run 708
    32: Tile(minor=16, channels=32, stages=2, slots=8, warps=4),  # 700
}
POOLED_TILES = {32: Tile(minor=8, channels=32, stages=3, slots=6, warps=4)}  # 671
# They read a gradient, with 8 pixels of padding.
DATA_TILES = {
    40: Tile(minor=8, channels=32, stages=2, slots=9, warps=4),
    32: Tile(minor=8, channels=32, stages=3, slots=5, warps=4),  # 604 and 597
    24: Tile(minor=16, channels=64, stages=2, slots=4, warps=8),  # 578
}
# By the side of x.
WEIGHT_TILES = {
    48: WeightTile(columns=8, stages=4, ahead=5),  # 757
    40: WeightTile(columns=8, stages=4, ahead=5),  # 796
    32: WeightTile(columns=12, stages=2, ahead=5),  # 731
}
WEIGHT_PROGRAMS_PER_MULTIPROCESSOR = 3  # one after the other, as one fills it


def tile(table: dict[int, Any], shape: Sequence[int], dtype: torch.dtype, outputs: int, size: int) -> Any:
    """Return a table's tile where x has `shape` ``(U, C, H, W)``, or None where there is none."""
    images, channels, height, width = shape
    fits = (
        known(images > 0, otherwise=True)
        and height == width
        and channels == outputs == CHANNELS
        and size == SIZE
        and dtype in DTYPES
    )
    return table.get(height) if fits else None


def uncovered(shape: Sequence[int], dtype: torch.dtype, weight: Sequence[int], pool: bool, padding: int) -> str:
    """Return what a forward convolution would have to be for a tile, or an empty string where there is one.

    Args:
        shape: of x, ``(U, C, H, W)``.
        weight: its shape, ``(K, C, k, k)``.
    """
    outputs, _, size, _ = weight
    if not padding and tile(POOLED_TILES if pool else FORWARD_TILES, shape, dtype, outputs, size):
        return ""
    return (
        "the kernels take float16 and bfloat16, 9x9 filters, 64 channels in and out, and 48x48, 40x40 and 32x32 pixels "
        "without padding, pooled 32x32 alone"
    )


def weight_gradient_splits(g: Tensor) -> int:
    """Return how many programs share a row of the filter, each with partial sums."""
    return max(1, WEIGHT_PROGRAMS_PER_MULTIPROCESSOR * targets.multiprocessors(g.device) // SIZE)
