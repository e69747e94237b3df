"""Checks of arguments that several ops make."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

# Set to 1 to check on GPUs, too, that indices are in range; it waits for the device at every op.
CHECK_VARIABLE = "GLYPHCRM_CHECK_INDICES"
INDEX_DTYPES = (torch.int64, torch.int32)


def check_devices(op: str, tensors: Mapping[str, Tensor | None]) -> None:
    """Raise `ValueError` unless all tensors, given by name, are on one device."""
    first, device = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if device is None:
            first, device = name, tensor.device
        elif tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, but {first} is on {device}; move them to one device")


def check_index_dtype(op: str, name: str, index: Tensor) -> None:
    """Raise `ValueError` unless `index` has a dtype of indices."""
    if index.dtype not in INDEX_DTYPES:
        raise ValueError(f"{op}: {name} is {index.dtype}; it must be int64 or int32")


def check_index(op: str, name: str, index: Tensor, rows: int) -> None:
    """Raise `ValueError` unless all of `index` lies in ``[0, rows)``; operators whose body does not look call it.

    On a CPU an index out of range is an error in every implementation, compiled or not: the C functions look as they
    go, and a graph of the reference has an assertion (`RuntimeError` with the same text). On a GPU nothing is read out
    of bounds either: the kernels give NaN for that token or picture, and its skip row and picture get no gradient.
    There values are looked at, before the op, only if the environment variable GLYPHCRM_CHECK_INDICES is 1, as the look
    waits for the device; not while compiling. The reference on a GPU is PyTorch's gather, which asserts on the device.
    """
    kind = index.device.type
    if torch.compiler.is_compiling():
        if kind == "cpu":
            inside = ((index >= 0) & (index < rows)).all()
            torch._assert_async(inside, f"{op}: {name} holds an index out of range; it must be in [0, rows)")
        return
    if kind == "cpu" or (kind == "cuda" and os.environ.get(CHECK_VARIABLE) == "1"):
        _look(op, name, index, rows)


def _look(op: str, name: str, index: Tensor, rows: int) -> None:
    if torch._C._len_torch_dispatch_stack() or is_fake(index):
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(index):  # `vmap` lets nobody see values
        index = torch._C._functorch.get_unwrapped(index)
    if not index.numel():
        return
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= rows:
        raise index_error(op, name, index, rows)


def index_error(op: str, name: str, index: Tensor, rows: int) -> ValueError:
    """Return what to raise for an index that is out of range."""
    low, high = (int(value) for value in index.aminmax())
    return ValueError(f"{op}: {name} holds {low if low < 0 else high}; it must be in [0, {rows})")


# A constant under a compiler: Dynamo cannot trace the question before torch 2.13.
@torch.compiler.assume_constant_result
def has_autocast(device_type: str) -> bool:
    """Return whether there is autocast on devices of a type."""
    return torch.amp.is_autocast_available(device_type)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return what autocast makes of `tensor` on its device; None if it is off or leaves it alone (float64)."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not has_autocast(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
