"""The C functions for the CPU, built on installation where there is a compiler and called through ctypes.

ctypes releases the interpreter's lock, and needs no headers of PyTorch or Python at build time. The library's OpenMP
is the one that PyTorch has loaded, so both share one pool of threads.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from glyphcrm_kernels._shared.memo import remembered

LANES = (16, 8, 4)  # floats in a vector of AVX-512, AVX2, and SSE2 or NEON
NAME = "_cpu"
BAD_INDEX = 1  # what a function returns that met an index out of range
NUMBERS = {bool: ctypes.c_int, int: ctypes.c_int, float: ctypes.c_float}  # other arguments are addresses
NOT_BUILT = "the C functions were not built; install this package where there is a C compiler"


def load() -> ctypes.CDLL | None:
    """Return the library, or None where it could not be built or does not load."""
    return _find()[0]


@functools.cache  # one warning
def _find() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, and why there is none; one that does not load is told of in a warning."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).parents[1] / (NAME + suffix)
        if path.exists():
            try:
                return ctypes.CDLL(str(path)), ""
            except OSError as error:  # built elsewhere, or what it needs is gone
                failure = f"the C functions do not load ({error})"
                warnings.warn(f"{failure}; PyTorch runs in their place", stacklevel=2)
                return None, f"{failure}; install this package anew"
    return None, NOT_BUILT


@torch.compiler.assume_constant_result
def lanes(*channels: int) -> int:
    """Return the longest vectors that this processor has and that divide all numbers of channels, or 0."""
    return _lanes(*channels)


@remembered
def _lanes(*channels: int) -> int:
    library = load()
    if library is None:
        return 0
    fitting = (n for n in LANES if not any(c % n for c in channels) and library.glyphcrm_has_lanes(n))
    return next(fitting, 0)


def cpu_obstacle(*tensors: Tensor | None, channels: tuple[int, ...] = ()) -> str:
    """Return what keeps the C functions from taking the tensors, or ""; vectors must divide all `channels`."""
    for tensor in tensors:
        if tensor is not None and (tensor.device.type != "cpu" or tensor.dtype != torch.float32):
            return "the C functions take float32 on a CPU; give them that"
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return "the C functions have no rule for forward-mode differentiation and torch.func; differentiate backward"
    if lanes(*channels):
        return ""
    return (
        f"channels of {', '.join(map(str, channels))}; the C functions take multiples of 4"
        if lanes()
        else _find()[1] or NOT_BUILT
    )


class BadIndexError(Exception):
    """A C function met an index that is out of range; the caller knows whose it is."""


def call(name: str, *arguments: float | Tensor | None) -> None:
    """Call ``glyphcrm_NAME`` with numbers as they are and the addresses of tensors, which must be contiguous.

    Raises:
        MemoryError: the function could not get the memory that it needs in between.
        BadIndexError: it read an index that is out of range; what it should have written is undefined then.
    """
    function, tensors, integers = _function(name, tuple(map(type, arguments)))
    values: list[Any] = list(arguments)
    for i in integers:
        if not -(2**31) <= values[i] < 2**31:
            raise OverflowError(f"{values[i]} does not fit the C functions' 32 bits; take a smaller batch")
    read = [values[i].resolve_neg() for i in tensors]  # such as the imaginary part of a conjugate is lazily negative
    for i, tensor in zip(tensors, read, strict=True):
        assert tensor.is_contiguous()
        values[i] = tensor.data_ptr()
    failed = function(*values)
    if failed == BAD_INDEX:
        raise BadIndexError
    if failed:
        raise MemoryError(f"{name}: no memory for the buffers; take a smaller batch")


@remembered
def _function(name: str, kinds: tuple[type, ...]) -> tuple[Callable[..., int], list[int], list[int]]:
    """Return the function for arguments of these types, and which of them are tensors and whole numbers."""
    library = load()
    assert library is not None
    types: list[Any] = [NUMBERS.get(kind, ctypes.c_void_p) for kind in kinds]
    function = ctypes.CFUNCTYPE(ctypes.c_int, *types)((f"glyphcrm_{name}", library))
    tensors = [i for i, kind in enumerate(kinds) if issubclass(kind, Tensor)]
    return function, tensors, [i for i, kind in enumerate(kinds) if issubclass(kind, int)]
