"""What a kernel launch is made of: the target, the output buffers, the arguments.

Operators start their kernels with `start`. Within `record` the same launches, built from tensors on the meta device,
are kept instead: what compiles them ahead of time sees exactly what a GPU would be given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glyphcrm_kernels._shared.optional_triton import INTERPRETED, tl


class Target(NamedTuple):
    """What a kernel is compiled for: ("cuda", 90), ("hip", "gfx942"), or ("interpreter", 0)."""

    backend: str
    arch: int | str


INTERPRETER = Target("interpreter", 0)


def target_of(device: torch.device) -> Target:
    """Return what Triton compiles for on `device`; within `record`, what was asked for there."""
    if _recording is not None:
        return _recording[0]
    if INTERPRETED:
        return INTERPRETER
    if torch.version.hip:
        return Target("hip", torch.cuda.get_device_properties(device).gcnArchName.split(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    return Target("cuda", 10 * major + minor)


def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors `device` has; where there is no GPU, an H100's 132 (meta) or 2 (CPU)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132 if device.type == "meta" else 2


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: the function that `triton.jit` or `gluon.jit` made.
        grid: program instances along up to three axes.
        arguments: tensors, their descriptors for TMA, and numbers by parameter name.
        constants: the `tl.constexpr` parameters by name.
        num_warps, num_stages: warps a program (32 threads each) and depth of the software pipeline.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3

    def run(self) -> None:
        """Start the kernel on the device of its tensors, or keep it within `record`; an empty grid is no launch."""
        if 0 in self.grid:
            return
        if _recording is not None:
            _recording[1].append(self)
            return
        device = next(value.device for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
                enable_fp_fusion=True,  # the default differs between releases of Triton
            )


_recording: tuple[Target, list[Launch]] | None = None


def start(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
) -> None:
    """Run a `Launch`; `arguments` come in the order of the kernel's parameters, its constants behind them."""
    named = dict(zip(kernel.arg_names, arguments, strict=False))
    Launch(kernel, grid, named, constants, num_warps, num_stages).run()


@contextlib.contextmanager
def record(target: Target) -> Iterator[list[Launch]]:
    """Let operators believe that they run on `target`, and yield the list that takes their launches; none runs."""
    global _recording
    launches: list[Launch] = []
    before = _recording
    _recording = target, launches
    try:
        yield launches
    finally:
        _recording = before


def launches_of(operator: Any, target: Target, *arguments: Any) -> list[Launch]:
    """Return what a custom operator (see `Op.operators`) would launch on `target`, given tensors on the meta device."""
    with record(target) as launches:
        operator._init_fn(*arguments)  # its body, in whose place meta tensors would get the rule for shapes
    return launches


def dot_arguments(target: Target, dtype: torch.dtype) -> dict[str, Any]:
    """Return how kernels multiply matrices whose elements are `dtype` in memory: two of their constants."""
    operands = getattr(tl, str(dtype).removeprefix("torch."))
    if target.backend == "interpreter" and dtype == torch.bfloat16:
        operands = tl.float32  # the interpreter's bfloat16 dot is wrong
    # Three TF32 products give float32 accuracy on NVIDIA's tensor cores; AMD's multiply float32 itself.
    return {"DOT_DTYPE": operands, "INPUT_PRECISION": "tf32x3" if target.backend == "cuda" else "ieee"}


def empty(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised contiguous tensor on the device of `like`, in its dtype unless one is given.

    All outputs of all kernels come from here and from `empty_nhwc`, so that a test can poison them.
    """
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def empty_nhwc(
    images: int, channels: int, height: int, width: int, *, like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Return an uninitialised ``(images, channels, height, width)`` in channels-last memory order."""
    return empty(images, height, width, channels, like=like, dtype=dtype).permute(0, 3, 1, 2)
