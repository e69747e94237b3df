"""What the Triton kernels run on: the only place that looks at architectures."""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from glyphcrm_kernels._shared.memo import remembered
from glyphcrm_kernels._shared.optional_triton import HAS_TRITON, INTERPRETED, triton
from glyphcrm_kernels._shared.targets import Target, target_of

OLDEST_CUDA_ARCH = 80  # Ampere: the first with bf16 and asynchronous copies
HIP_ARCHS = ("gfx90a", "gfx942", "gfx950")
HOPPER = Target("cuda", 90)
GLUON_RELEASES = ("3.6", "3.7", "3.9")  # of Triton; see gluon.py
NO_HOPPER = "the kernels for Hopper need a GPU of compute capability 9.0, not {}; move the tensors to one"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def on_no_gpu(first: Tensor, *others: object) -> str:
    """Return why "auto" passes the Triton kernels over, or an empty string; off a GPU they run in tests alone."""
    return "" if first.device.type == "cuda" else "the tensors are on no GPU"


def triton_obstacle(**tensors: Tensor | None) -> str:
    """Return what keeps the Triton kernels from taking the tensors, all on one device and given by name, or "".

    On a GPU that the kernels do not support there is one warning.
    """
    # PyTorch would take tangents through an operator without a rule as 0, and not say so.
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return "the Triton kernels have no rule for forward-mode differentiation and torch.func; differentiate backward"
    if not HAS_TRITON:
        return "Triton is not installed; install it"
    first, tensor = next((name, t) for name, t in tensors.items() if t is not None)
    device = tensor.device
    if device.type != "cuda" and not INTERPRETED:
        return f"{first} is on {device.type}; move the tensors to a GPU, set TRITON_INTERPRET=1 before Python starts"
    for name, t in tensors.items():
        if t is not None and t.is_floating_point() and not _takes(t.dtype):
            return f"{name} is {t.dtype}; give the Triton kernels float16, bfloat16 or float32"
    return "" if INTERPRETED else _device_obstacle(device.type, device.index)


def hopper_obstacle(tensor: Tensor) -> str:
    """Return what keeps the kernels for Hopper from running where `tensor` is, or an empty string.

    On a Hopper GPU with a release of Triton that they are not made for, there is one warning.
    """
    device = tensor.device
    return _hopper_obstacle(device.index) if device.type == "cuda" else NO_HOPPER.format(device.type)


@torch.compiler.assume_constant_result
def _hopper_obstacle(device_index: int | None) -> str:
    target = target_of(torch.device("cuda", device_index or 0))
    if target != HOPPER:
        return NO_HOPPER.format(f"{target.backend} {target.arch}")
    return gluon_obstacle() if HAS_TRITON else "Triton is not installed; install it"


@remembered  # one warning
def gluon_obstacle() -> str:
    """Return why the Gluon of the installed Triton is none that the kernels are made for, or an empty string."""
    found = triton.__version__
    if ".".join(found.split(".")[:2]) in GLUON_RELEASES:
        try:
            import glyphcrm_kernels._shared.gluon  # noqa: F401

            return ""
        except (ImportError, AttributeError) as error:  # it is experimental
            found = f"{found}, where {error}"
    wanted = f"the kernels for Hopper need Gluon as of Triton {', '.join(GLUON_RELEASES)}; install one of these"
    warnings.warn(f"{wanted} (found {found}); the Triton kernels run in their place", stacklevel=6)
    return f"{wanted} (found {found})"


def _takes(dtype: torch.dtype) -> bool:
    # float64 is for gradient checks in the interpreter; no GPU has use for it here.
    return dtype in DTYPES or (INTERPRETED and dtype == torch.float64)


@torch.compiler.assume_constant_result
def _device_obstacle(device_type: str, device_index: int | None) -> str:
    return _target_obstacle(target_of(torch.device(device_type, device_index or 0)))


@remembered  # one look and at most one warning for each kind of GPU
def _target_obstacle(target: Target) -> str:
    obstacle = obstacle_on(target)
    if obstacle:
        warnings.warn(
            f"the Triton kernels of GlyphCRM {obstacle}; the PyTorch reference runs in their place", stacklevel=6
        )
        return f"the Triton kernels {obstacle}; change that"
    return ""


def obstacle_on(target: Target) -> str:
    """Return what keeps the kernels from running on `target`, with "the kernels" as its subject, or an empty string."""
    old = isinstance(target.arch, int) and target.arch < OLDEST_CUDA_ARCH
    if old or (target.backend == "hip" and target.arch not in HIP_ARCHS):
        return f"do not support {target.backend} {target.arch}"
    if not _can_build():
        return "need a C compiler and Python's headers (gcc, python3-dev), with which Triton builds its launchers"
    return ""


def _can_build() -> bool:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and Path(sysconfig.get_paths()["include"], "Python.h").exists()
