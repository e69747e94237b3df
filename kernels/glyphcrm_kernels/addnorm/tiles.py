"""Add-norm: the tiles of its Triton kernels.

A thread takes 8 neighbouring columns at a time: 16 bytes in 16-bit types.
"""

from __future__ import annotations

from glyphcrm_kernels._shared.targets import Target, warps

LARGEST_WIDTH = 4096  # a program holds whole rows in its registers; wider ones spill on sm_90
ELEMENTS_A_PROGRAM = 2048  # whole rows, at least one
ELEMENTS_A_THREAD = 16
BACKWARD_PROGRAMS_A_MULTIPROCESSOR = 4
# 8 neighbouring columns of SEGMENT_PARTS tokens are what SEGMENT_THREADS load at once.
SEGMENT_TOKENS, SEGMENT_COLUMNS, SEGMENT_PARTS, SEGMENT_THREADS = 64, 128, 8, 128


def tile(target: Target, d: int) -> tuple[int, int, int]:
    """Return rows and columns (powers of two) of a program's tile, and its warps."""
    block = max(16, 1 << (d - 1).bit_length())
    rows = max(1, ELEMENTS_A_PROGRAM // block)
    return rows, block, warps(target, rows * block // ELEMENTS_A_THREAD)
