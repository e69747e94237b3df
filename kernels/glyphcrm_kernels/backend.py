"""Which implementation runs: the only place that looks at devices, architectures and dtypes."""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad

from glyphcrm_kernels._triton import HAS_TRITON, INTERPRETED
from glyphcrm_kernels.launch import Target, target_of

BACKENDS = ("auto", "triton", "reference")
OLDEST_CUDA_ARCH = 80  # Ampere: the first with bf16 and asynchronous copies
HIP_ARCHS = ("gfx90a", "gfx942", "gfx950")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Set to 1 to check on GPUs, too, that indices are in range; it waits for the device at every op.
CHECK_VARIABLE = "GLYPHCRM_CHECK_INDICES"


def use_triton(op: str, backend: str, **tensors: Tensor | None) -> bool:
    """Say whether the Triton kernels shall run, after checking that the tensors can go together.

    Args:
        op: name of the operation, for messages.
        backend: "auto" (Triton on a GPU that it compiles for, else the reference), "triton", or "reference".
        tensors: the arguments by name; the first gives the device.

    Raises:
        ValueError: an unknown backend; tensors on different devices; with "triton" a dtype that the
            kernels do not take, tensors that are on no GPU, or no Triton at all.

    On a GPU that Triton or the kernels do not support, the reference runs, after one warning. It also runs
    inside forward-mode differentiation, for which the kernels have no rule.
    """
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend={backend!r} is none of {', '.join(BACKENDS)}")
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, device = next((name, tensor.device) for name, tensor in given.items())
    for name, tensor in given.items():
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, but {first} is on {device}; move them to one device")
    # PyTorch would take tangents through an operator without a rule as 0, and not say so.
    if backend == "reference" or forward_ad._current_level >= 0:
        return False
    wrong = {name: t.dtype for name, t in given.items() if t.is_floating_point() and not _takes(t.dtype)}
    if backend == "auto":
        return device.type == "cuda" and not wrong and _supported(device.type, device.index)
    if not HAS_TRITON:
        raise ValueError(f"{op}: backend='triton', but Triton is not installed; use backend='auto'")
    if device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"{op}: backend='triton', but {first} is on {device}; move the tensors to a GPU, use backend='auto', "
            "or set TRITON_INTERPRET=1 before Python starts"
        )
    for name, dtype in wrong.items():
        raise ValueError(f"{op}: {name} is {dtype}; the Triton kernels take float16, bfloat16 and float32")
    return INTERPRETED or _supported(device.type, device.index)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return what autocast makes of `tensor` on its device; None if it is off or leaves it alone (float64)."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def check_index(op: str, name: str, index: Tensor, rows: int) -> None:
    """Raise `ValueError` unless all of `index` lies in ``[0, rows)``.

    Values on a GPU are looked at only if the environment variable GLYPHCRM_CHECK_INDICES is 1, as the
    look waits for the device; while compiling, nothing is looked at.
    """
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{op}: {name} is {index.dtype}; it must be int64 or int32")
    if torch.compiler.is_compiling() or is_fake(index) or not index.numel():
        return
    if index.device.type == "cpu" or (index.device.type == "cuda" and os.environ.get(CHECK_VARIABLE) == "1"):
        low, high = (int(value) for value in index.aminmax())
        if low < 0 or high >= rows:
            raise ValueError(f"{op}: {name} holds {low if low < 0 else high}; it must be in [0, {rows})")


def _takes(dtype: torch.dtype) -> bool:
    # float64 is for gradient checks in the interpreter; no GPU has use for it here.
    return dtype in DTYPES or (INTERPRETED and dtype == torch.float64)


@torch.compiler.assume_constant_result
def _supported(device_type: str, device_index: int | None) -> bool:
    if not HAS_TRITON:
        return False
    return _supports(target_of(torch.device(device_type, device_index or 0)))


@functools.cache  # one look and at most one warning for each kind of GPU
def _supports(target: Target) -> bool:
    obstacle = obstacle_on(target)
    if obstacle:
        warnings.warn(
            f"the Triton kernels of GlyphCRM {obstacle}; the PyTorch reference runs in their place", stacklevel=5
        )
    return not obstacle


def obstacle_on(target: Target) -> str:
    """Say what keeps the kernels from running on `target`, or nothing."""
    old = isinstance(target.arch, int) and target.arch < OLDEST_CUDA_ARCH
    if old or (target.backend == "hip" and target.arch not in HIP_ARCHS):
        return f"do not support {target.backend} {target.arch}"
    if not _can_build():
        return "need a C compiler and Python's headers (gcc, python3-dev), with which Triton builds its launchers"
    return ""


def _can_build() -> bool:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and Path(sysconfig.get_paths()["include"], "Python.h").exists()
