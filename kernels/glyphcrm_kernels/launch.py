"""What a kernel launch is made of: the target, the output buffers, the arguments.

Every op describes its launches as `Launch` objects and runs them with `.run()`. The same objects,
built from tensors on the meta device, are what the static report compiles ahead of time: it sees
exactly what a GPU would be given.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glyphcrm_kernels._triton import INTERPRETED


class Target(NamedTuple):
    """What a kernel is compiled for: ("cuda", 90), ("hip", "gfx942"), or ("interpreter", 0)."""

    backend: str
    arch: int | str


INTERPRETER = Target("interpreter", 0)


def target_of(device: torch.device) -> Target:
    """Return what Triton compiles for on `device`."""
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
        kernel: the function that `triton.jit` made.
        grid: program instances along up to three axes.
        arguments: tensors and numbers by parameter name.
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
        """Start the kernel on the device of its tensors; an empty grid is no launch."""
        if 0 in self.grid:
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
