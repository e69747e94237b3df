"""Glyph stem: the tiles of its Triton kernels.

A program works on some windows of 2x2 pixels, all channels; their number must be a power of two that divides 24 * 24.
With THREADS_PER_CHANNEL threads a channel, 16 windows in half precision and 8 in float32 are one access of 16 bytes a
thread for each pixel of the window. More windows spill registers in the backward, and so would one warp.
"""

from __future__ import annotations

import torch

from glyphcrm_kernels._shared.targets import Target
from glyphcrm_kernels.stem.reference import POOLED_SIZE

CHANNELS = (4, 16, 32, 64)  # what the kernels were compiled and tested for; 4 is for tests
THREADS_PER_CHANNEL = 2
FEWEST_THREADS = 64  # a wavefront of AMD's
IMAGES_PER_PROGRAM = 16  # forward: more saves reads of the constant map, fewer fills the GPU earlier
# Backward: 256 (sm_80) or 384 (sm_90) threads fit on a multiprocessor at once; this is whole waves of either.
THREADS_PER_MULTIPROCESSOR = 768
BACKWARD_STAGES = 2


def tile(target: Target, channels: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return how many windows a program works on, and its warps."""
    if target.backend == "interpreter":
        return 64, 4  # its time goes by the number of programs
    warp = 64 if target.backend == "hip" else 32
    threads = max(FEWEST_THREADS, THREADS_PER_CHANNEL * channels)
    return THREADS_PER_CHANNEL * 16 // dtype.itemsize, threads // warp


def backward_partials(
    target: Target, multiprocessors: int, images: int, channels: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Return how many partial sums the backward kernel leaves: (splits of the images, tiles of an image)."""
    windows, warps = tile(target, channels, dtype)
    tiles = POOLED_SIZE * POOLED_SIZE // windows
    programs = THREADS_PER_MULTIPROCESSOR // (32 * warps) * multiprocessors
    return max(1, min(programs // tiles, images)), tiles
