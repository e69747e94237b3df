"""Glyph convolution: the tiles of its Triton kernels, by architecture and number of output channels."""

from __future__ import annotations

from typing import NamedTuple

import torch

from glyphcrm_kernels._shared.optional_triton import triton
from glyphcrm_kernels._shared.targets import Target

CHANNELS = (4, 8, 16, 32, 64, 128)  # what the kernels take


class Tile(NamedTuple):
    """The work of one program at 16 bits: output pixels by all output channels, in steps of `reduction`.

    With 32 bits, `pixels` and `reduction` are halved.
    """

    pixels: int
    reduction: int
    warps: int
    stages: int


Table = dict[str, dict[int, Tile]]
# By family of architectures and output channels. Chosen by reading the compiled code
# (`python -m bench.static_report`); not timed on a GPU.
FORWARD_TILES = {
    "ampere": {16: Tile(128, 64, 4, 3), 32: Tile(128, 64, 4, 3), 64: Tile(128, 64, 4, 3), 128: Tile(64, 64, 4, 3)},
    "hopper": {16: Tile(128, 64, 4, 3), 32: Tile(128, 64, 4, 3), 64: Tile(128, 64, 4, 3), 128: Tile(64, 64, 4, 3)},
    "blackwell": {16: Tile(128, 64, 4, 3), 32: Tile(128, 32, 4, 4), 64: Tile(128, 64, 4, 3), 128: Tile(64, 64, 4, 3)},
    "cdna": {16: Tile(128, 64, 4, 2), 32: Tile(128, 64, 4, 2), 64: Tile(128, 64, 4, 2), 128: Tile(64, 64, 4, 2)},
}
# With padding, as in every data gradient: each pixel's place takes registers.
PADDED_TILES = {
    "ampere": {16: Tile(128, 64, 4, 3), 32: Tile(128, 32, 4, 4), 64: Tile(128, 32, 4, 4), 128: Tile(64, 32, 4, 4)},
    "hopper": {16: Tile(128, 64, 4, 3), 32: Tile(128, 64, 4, 3), 64: Tile(128, 64, 4, 3), 128: Tile(128, 64, 4, 3)},
    "blackwell": {16: Tile(128, 32, 4, 4), 32: Tile(128, 32, 4, 4), 64: Tile(64, 64, 4, 2), 128: Tile(128, 64, 4, 3)},
    "cdna": {16: Tile(128, 64, 4, 2), 32: Tile(128, 64, 4, 2), 64: Tile(128, 64, 4, 2), 128: Tile(64, 64, 4, 2)},
}
# Weight gradient: `pixels` is the step here, and `reduction` the width of the tile of the filter.
WEIGHT_TILES = {
    "ampere": {16: Tile(64, 64, 4, 3), 32: Tile(64, 64, 4, 3), 64: Tile(64, 128, 4, 3), 128: Tile(64, 64, 4, 3)},
    "hopper": {16: Tile(64, 64, 4, 3), 32: Tile(64, 64, 4, 3), 64: Tile(64, 128, 4, 3), 128: Tile(64, 64, 4, 3)},
    "blackwell": {16: Tile(64, 64, 4, 3), 32: Tile(64, 128, 4, 3), 64: Tile(64, 128, 4, 3), 128: Tile(64, 32, 4, 3)},
    "cdna": {16: Tile(64, 64, 4, 2), 32: Tile(64, 64, 4, 2), 64: Tile(64, 128, 4, 2), 128: Tile(64, 64, 4, 2)},
}
WEIGHT_PROGRAMS_PER_MULTIPROCESSOR = 4


def family(target: Target) -> str:
    """Return the row of a table that `target` reads."""
    if target.backend == "cuda":
        # The others, sm_86, sm_89 and sm_120 too, have Ampere's tensor cores and less shared memory.
        return {90: "hopper", 100: "blackwell", 103: "blackwell"}.get(int(target.arch), "ampere")
    return "cdna" if target.backend == "hip" else "interpreter"


def tile(table: Table, target: Target, channels: int, dtype: torch.dtype, pixels: int) -> Tile:
    """Return the tile for so many output channels and pixels."""
    row = family(target)
    if row == "interpreter":  # few programs and little padding, as each costs a millisecond
        return Tile(min(max(triton.next_power_of_2(pixels), 16), 4096), 64, 4, 1)
    tile = table[row][max(channels, 16)]
    if dtype.itemsize == 2:
        return tile
    # TF32 in three products needs twice the registers as well.
    return tile._replace(pixels=max(tile.pixels // 2, 16), reduction=tile.reduction // 2)


def epilogue_block(target: Target, channels: int) -> int:
    """Return how many pixels the epilogue's backward takes at a time."""
    if target.backend == "interpreter":
        return 256
    # An access of 16 bytes for each of 128 threads, on AMD 256; two spill registers on sm_80 with Triton 3.7.1.
    return (2048 if target.backend == "hip" else 1024) // channels


def epilogue_programs(target: Target, multiprocessors: int, pixels: int, channels: int) -> int:
    """Return how many programs share so many pixels, each with one partial sum of the bias gradient."""
    return min(triton.cdiv(pixels, epilogue_block(target, channels)), 8 * multiprocessors)


def weight_gradient_splits(tile: Tile, multiprocessors: int, pixels: int, size: int, row: int) -> int:
    """Return into how many parts the pixels of a gradient are split, so that all multiprocessors have work."""
    wanted = WEIGHT_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    return max(1, min(triton.cdiv(pixels, tile.pixels), wanted // (size * triton.cdiv(row, tile.reduction))))
