"""What a kernel is compiled for, and what follows from it for kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from glyphcrm_kernels._shared.memo import remembered
from glyphcrm_kernels._shared.optional_triton import INTERPRETED, tl


class Target(NamedTuple):
    """What a kernel is compiled for: ("cuda", 90), ("hip", "gfx942"), or ("interpreter", 0)."""

    backend: str
    arch: int | str


INTERPRETER = Target("interpreter", 0)
_pretended: Target | None = None


def target_of(device: torch.device) -> Target:
    """Return what Triton compiles for on `device`; within `pretend`, what was asked for there."""
    return _target_of(device) if _pretended is None else _pretended


@contextlib.contextmanager
def pretend(target: Target) -> Iterator[None]:
    """Let every device be a GPU of that kind."""
    global _pretended
    before, _pretended = _pretended, target
    try:
        yield
    finally:
        _pretended = before


@remembered
def _target_of(device: torch.device) -> Target:
    if INTERPRETED:
        return INTERPRETER
    if torch.version.hip:
        return Target("hip", torch.cuda.get_device_properties(device).gcnArchName.split(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    return Target("cuda", 10 * major + minor)


@remembered
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors `device` has; where there is no GPU, an H100's 132 (meta) or 2 (CPU)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132 if device.type == "meta" else 2


def warps(target: Target, threads: int) -> int:
    """Return how many warps, AMD's wavefronts, make so many threads."""
    return threads // (64 if target.backend == "hip" else 32)


def dot_arguments(target: Target, dtype: torch.dtype) -> dict[str, Any]:
    """Return how kernels multiply matrices whose elements are `dtype` in memory: two of their constants."""
    operands = getattr(tl, str(dtype).removeprefix("torch."))
    if target.backend == "interpreter" and dtype == torch.bfloat16:
        operands = tl.float32  # the interpreter's bfloat16 dot is wrong
    # Three TF32 products give float32 accuracy on NVIDIA's tensor cores; AMD's multiply float32 itself.
    return {"DOT_DTYPE": operands, "INPUT_PRECISION": "tf32x3" if target.backend == "cuda" else "ieee"}
