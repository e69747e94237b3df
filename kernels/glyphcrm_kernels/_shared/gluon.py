"""Gluon, Triton's language below tiles, under one name for what its releases call differently. Imported on use.

    here           3.6                               3.7          3.9
    copy_in        tma.async_copy_global_to_shared   the same     tma.async_load
    barrier        gl.thread_barrier                 gl.barrier   gl.barrier
    reinterpret    descriptor._reinterpret           the same     descriptor.reinterpret

Views of shared memory differ in what they may be. 3.9 refuses one that is larger than its source, and takes a static
slice of a buffer whose leading dimension is no power of two. Before, such a slice ends the process, and a larger view
is the way to address from a computed place on. `stage_of` and `window` hide that. 3.8 refuses both.
"""

from __future__ import annotations

import functools
from typing import Any

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

__all__ = ["barrier", "copy_in", "describe", "gl", "gluon", "hopper", "reinterpret", "stage_of", "window"]

_memory = gl.shared_memory_descriptor
copy_in = getattr(hopper.tma, "async_load", None) or hopper.tma.async_copy_global_to_shared
barrier = getattr(gl, "barrier", None) or gl.thread_barrier
reinterpret = getattr(_memory, "reinterpret", None) or _memory._reinterpret
EXACT_VIEWS = gl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9))


@gluon.jit
def stage_of(units, stage, STAGES: gl.constexpr, LENGTH: gl.constexpr):
    """Return what `window` takes as `base` for the stage-th run of LENGTH units of a ring of STAGES.

    units: shared memory of shape (STAGES * LENGTH, rows, columns).
    """
    if EXACT_VIEWS:
        # A choice between static slices: one select of an address. A loop unrolled over the stages would keep every
        # address in registers, which spills.
        base = units.slice(0, LENGTH, 0)
        for i in gl.static_range(1, STAGES):
            if stage == i:
                base = units.slice(i * LENGTH, LENGTH, 0)
    else:
        base = stage * LENGTH
    return base


@gluon.jit
def window(units, base, FIRST: gl.constexpr, LENGTH: gl.constexpr, SHAPE: gl.constexpr, LAYOUT: gl.constexpr):
    """Return LENGTH units from the FIRST-th of a stage on, as a matrix of SHAPE."""
    if EXACT_VIEWS:
        view = reinterpret(base.slice(FIRST, LENGTH, 0), units.dtype, SHAPE, LAYOUT)
    else:
        view = reinterpret(units.index(base + FIRST), units.dtype, SHAPE, LAYOUT)
    return view


def describe(base: Any, shape: list[int], strides: list[int], block: list[int]) -> TensorDescriptor:
    """Return what TMA has to know of a tensor with 16-bit elements: it copies boxes of `block` elements.

    Rows of a box lie in shared memory swizzled over their whole length, ``block[-1]`` of 32 or 64 elements.
    """
    return TensorDescriptor(base, shape, strides, block, _swizzled(2 * block[-1], len(block)))


@functools.cache  # a launch is to cost the host little
def _swizzled(row_bytes: int, rank: int) -> Any:
    return gl.NVMMASharedLayout(row_bytes, 16, rank=rank)
