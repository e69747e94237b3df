"""How a kernel is started: a `Launch` once, a `Plan` again and again. All launches go through the two.

Triton finds out at every launch which compiled kernel fits the arguments, and that takes the host as long as all the
rest. It looks at numbers (whether they are 1 or multiples of 16), and of tensors at dtype and alignment. A plan's
numbers are its own, so it looks at the tensors alone and starts the kernel that the first such launch returned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glyphcrm_kernels._shared.optional_triton import HAS_TRITON, INTERPRETED, triton

# Of Triton: those whose compiled kernels take a launch's arguments in the order of the parameters, constants included.
DIRECT_RELEASES = ("3.5", "3.6", "3.7", "3.8", "3.9")
# On AMD, Triton looks at the sizes of tensors as well.
DIRECT = (
    HAS_TRITON
    and not INTERPRETED
    and not torch.version.hip
    and ".".join(triton.__version__.split(".")[:2]) in DIRECT_RELEASES
)
ALIGNMENT = 16  # bytes; what Triton distinguishes addresses by


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
        """Start the kernel on the device of its tensors, or give it to `intercepted`; an empty grid is no launch."""
        if 0 in self.grid:
            return
        if _interceptor is not None:
            _interceptor(self)
        else:
            self.start()

    def start(self) -> Any:
        """Start the kernel on the device of its tensors, and return it compiled."""
        tensor = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with _on(tensor.get_device()):
            return self.kernel[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
                enable_fp_fusion=True,  # the default differs between releases of Triton
            )


class Plan:
    """A launch without its tensors.

    Args:
        kernel, grid, constants, num_warps, num_stages: as in `Launch`.
        numbers: the arguments between the tensors and the constants.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        numbers: tuple[int, ...],
        constants: dict[str, Any],
        num_warps: int = 4,
        num_stages: int = 3,
    ) -> None:
        self.kernel, self.grid, self.numbers, self.constants = kernel, grid, numbers, constants
        self.num_warps, self.num_stages = num_warps, num_stages
        self._is_empty = 0 in grid
        # What a compiled kernel takes behind the tensors, in the order of its parameters.
        self._behind = (*numbers, *(constants[name] for name in kernel.arg_names if name in constants))
        self._compiled: dict[Any, Callable[..., None]] = {}

    def launch(self, *tensors: Tensor | None) -> Launch:
        """Return the launch with these tensors, which come in the order of the kernel's parameters."""
        arguments = dict(zip(self.kernel.arg_names, (*tensors, *self.numbers), strict=False))
        return Launch(self.kernel, self.grid, arguments, self.constants, self.num_warps, self.num_stages)

    def start(self, first: Tensor, *others: Tensor | None) -> None:
        """Run the launch with these tensors."""
        if self._is_empty:
            return
        # Such as the imaginary part of a conjugate is lazily negative: its memory has the other sign.
        first, tensors = first.resolve_neg(), tuple([t if t is None else t.resolve_neg() for t in others])
        if _interceptor is not None or not DIRECT:
            self.launch(first, *tensors).run()
            return
        device = first.get_device()
        tensors = (first, *tensors)
        key = (device, *[t if t is None else (t.dtype, t.data_ptr() % ALIGNMENT == 0) for t in tensors])
        compiled = self._compiled.get(key)
        if compiled is None:
            self._compiled[key] = self._first(*tensors)
            return
        with _on(device):
            compiled(*tensors, *self._behind)

    def _first(self, *tensors: Tensor | None) -> Callable[..., None]:
        """Run the launch, and return what starts the kernel that Triton took for it."""
        width, height, depth = (*self.grid, 1, 1)[:3]
        start: Callable[..., None] = self.launch(*tensors).start()[width, height, depth]
        return start


_NOWHERE: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


def _on(device: int) -> contextlib.AbstractContextManager[None]:
    """Make a GPU the current one; -1 is none."""
    return _NOWHERE if device < 0 or device == torch.cuda.current_device() else torch.cuda.device(device)


_interceptor: Callable[[Launch], object] | None = None


@contextlib.contextmanager
def intercepted(take: Callable[[Launch], object]) -> Iterator[None]:
    """Give every launch to `take` instead of running it."""
    global _interceptor
    before, _interceptor = _interceptor, take
    try:
        yield
    finally:
        _interceptor = before
