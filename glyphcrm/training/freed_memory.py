"""Freed memory stays with the process, so that the next step of a training need not ask the kernel for it again."""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h; see mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, for the life of the process; return whether there was a glibc to tell.

    By default malloc maps every block above 32 MiB anew and unmaps it when it is freed, and the kernel clears each page
    at its first touch. A training step on a CPU allocates gigabytes of activations; at base size with 32 x 128 tokens a
    quarter of its time went there. The price is the holes between blocks of different lengths: the process
    needs more memory at its peak. Other allocators than glibc's, preloaded ones too, are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1
