"""Runs Gluon kernels for Hopper in NumPy, without a GPU and without Triton, and finds their races.

    with Emulator(release="3.9.0", order="late") as emulator:  # stand-ins take the place of Triton's modules meanwhile
        emulator.run(hopper.convolution(tile, x, ...))

The kernels' own source runs, line by line, one program after the other, on CPU tensors. float64 makes the comparison
sharp: an index that is off shows, and rounding does not. What is asynchronous on a GPU is so here:

- A copy by TMA (with zeros outside of the tensor) lands as early or as late as its barrier allows. `order` "early"
  finds a stage that is refilled while it is still read, "late" one that is read before its copy is waited for.
- wgmma reads shared memory as late as allowed. After a warp's own `warpgroup_mma_wait` other warps may lag behind, so
  only the next `barrier` makes the products of all warps final.
- `mbarrier`: bytes expected and bytes copied must agree, and no phase may be waited for too early or twice.
- Shared memory must not be read before a copy has landed there. A view must lie in its buffer, begin at a whole swizzle
  atom and, from Triton 3.9 on, must not be larger than its source.

`EmulationError` says what was wrong; wrong numbers are left to the caller's comparison.

Not modelled: what warps do between two barriers but for lagging, the compiler, registers, bank conflicts, the size of
shared memory, rounding, clusters. A name of Gluon that the kernels do not use is missing and raises AttributeError.
"""

from __future__ import annotations

import contextlib
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import glyphcrm_kernels
import numpy as np
from glyphcrm_kernels._shared.launch import Launch
from torch import Tensor

ORDERS = ("early", "late")
RELEASES = ("3.6.0", "3.7.1", "3.9.0")
ROOT = Path(*glyphcrm_kernels.__path__)
# In their order of import.
SOURCES = ("_shared/gluon.py", "conv/hopper_kernels.py", "conv/hopper_wgrad_kernels.py")


class EmulationError(AssertionError):
    """The kernel did what is undefined on the GPU."""


def require(condition: Any, message: str) -> None:
    """Raise `EmulationError` unless the condition holds."""
    if not condition:
        raise EmulationError(message)


class Emulator:
    """Stand-ins for Triton's modules and for what imports them, and the state of the program that runs.

    Args:
        release: the release of Triton to stand in for, which decides what views are allowed and what names there are.
        order: "early" or "late", when copies land.
        edit: changes the kernels' source, to put a fault in.
    """

    def __init__(
        self, release: str = "3.9.0", order: str = "late", edit: Callable[[str], str] = lambda text: text
    ) -> None:
        self.release, self.order, self.edit = release, order, edit
        self.exact_views = release.startswith("3.9")
        self.program = 0
        self._reset()

    def _reset(self) -> None:
        self.issued: list[Callable[[], None]] = []  # wgmma that nobody waited for
        self.waited: list[Callable[[], None]] = []  # waited for by their own warp; others may lag until the barrier
        self.barriers_ready = 0  # 0: initialised, 1: fenced, 2: and all warps know

    def __enter__(self) -> Emulator:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(sys.modules, _stand_ins(self)))
            for source in SOURCES:
                name = f"{ROOT.name}.{source.removesuffix('.py').replace('/', '.')}"
                module = sys.modules[name] = types.ModuleType(name)
                # Annotations are not evaluated, so that `gl.constexpr` in them needs no meaning.
                text = self.edit((ROOT / source).read_text())
                exec(compile(text, str(ROOT / source), "exec", dont_inherit=True), module.__dict__)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, launch: Launch) -> None:
        """Run all programs of a launch; its tensors are memory that the kernel reads and writes."""
        arguments = {
            name: _Pointer(_array(value)) if isinstance(value, Tensor) else value
            for name, value in launch.arguments.items()
        }
        require(launch.num_warps == launch.constants["WARPS"], "the kernel does not know how many warps it has")
        for self.program in range(launch.grid[0]):
            self._reset()
            launch.kernel(**arguments, **launch.constants)
            require(not self.issued, "wgmma left that nobody waited for")

    # What the stand-ins call

    def retire(self, outstanding: int) -> None:
        """A warp has waited until at most so many of its products are outstanding."""
        while len(self.issued) > outstanding:
            self.waited.append(self.issued.pop(0))

    def flush(self) -> None:
        """All warps have come so far."""
        for work in self.waited:
            work()
        self.waited.clear()

    def registers(self, value: Any) -> Any:
        """Return an accumulator that is used: its own warp's products must have been waited for."""
        require(not self.issued, "an accumulator is used before its wgmma are waited for")
        self.flush()
        return value


# Memory ---------------------------------------------------------------------------------------------


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory, in its order."""
    if tensor.dim() == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    assert tensor.is_contiguous()
    return tensor.detach().numpy().reshape(-1)


class _Pointer:
    def __init__(self, array: np.ndarray, at: Any = 0) -> None:
        self.array, self.at = array, at
        self.dtype = types.SimpleNamespace(element_ty=array.dtype)

    def __add__(self, distance: Any) -> _Pointer:
        return _Pointer(self.array, self.at + distance)


class _Values(np.ndarray):
    """A tensor of the language. It is rounded where it goes to the format of memory, and float64 in between."""

    def to(self, dtype: Any) -> _Values:
        return self if dtype is None else _values(self.astype(dtype).astype(np.float64))


def _values(array: Any) -> _Values:
    return np.asarray(array).view(_Values)


class _Layout:
    def __init__(self, *arguments: Any, **named: Any) -> None:
        names = ("swizzle_byte_width", "element_bitwidth", "rank")
        self.__dict__.update(dict(zip(names, arguments, strict=False)) | named)


class _Buffer:
    """Shared memory, and where a copy has written."""

    def __init__(self, size: int) -> None:
        self.values, self.written = np.zeros(size), np.zeros(size, bool)


class _Shared:
    """A view of shared memory (`shared_memory_descriptor`)."""

    def __init__(
        self,
        emulator: Emulator,
        buffer: _Buffer,
        offset: int,
        shape: list[int],
        layout: Any,
        order: tuple[int, ...] | None = None,
    ) -> None:
        self.emulator, self.buffer, self.offset, self.shape = emulator, buffer, offset, list(shape)
        self.layout, self.order = layout, order
        self.dtype = "16 bits"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def _at(self, offset: int, shape: list[int], layout: Any = None) -> _Shared:
        return _Shared(self.emulator, self.buffer, self.offset + offset, shape, layout or self.layout)

    def index(self, i: Any) -> _Shared:
        return self._at(int(i) * math.prod(self.shape[1:]), self.shape[1:])  # checked where it is read or written

    def slice(self, start: int, length: int, dim: int = 0) -> _Shared:
        require(dim == 0 and start >= 0 and start + length <= self.shape[0], "a slice outside of its source")
        require(self.emulator.exact_views, f"Triton {self.emulator.release} does not take slices here")
        return self._at(start * math.prod(self.shape[1:]), [length, *self.shape[1:]])

    def reinterpret(self, shape: list[int], layout: Any) -> _Shared:
        if self.emulator.exact_views:
            require(math.prod(shape) <= self.size, "a view that is larger than its source")
        return self._at(0, shape, layout)

    def permute(self, order: list[int]) -> _Shared:
        return _Shared(self.emulator, self.buffer, self.offset, self.shape, self.layout, tuple(order))

    def write(self, data: np.ndarray) -> None:
        require(data.size == self.size, f"a copy of {data.shape} into {self.shape}")
        self._check()
        self.buffer.values[self.offset : self.offset + self.size] = data.reshape(-1)
        self.buffer.written[self.offset : self.offset + self.size] = True

    def matrix(self) -> np.ndarray:
        """Return the values as wgmma sees them: columns in blocks as wide as the swizzle, one block after the other."""
        self._check()
        rows, columns = self.shape
        width = min(columns, self.layout.swizzle_byte_width // 2)
        part = slice(self.offset, self.offset + self.size)
        require(self.buffer.written[part].all(), "shared memory is read that no copy has written")
        values = self.buffer.values[part].reshape(columns // width, rows, width).transpose(1, 0, 2)
        values = values.reshape(rows, columns)
        return values.transpose(self.order) if self.order else values

    def _check(self) -> None:
        require(
            self.offset >= 0 and self.offset + self.size <= self.buffer.values.size, "an access outside of a buffer"
        )
        atom = 8 * self.layout.swizzle_byte_width // 2
        require(self.offset % atom == 0, "a view begins inside a swizzle atom")


class _Barrier:
    def __init__(self) -> None:
        self.done = 0
        self.expected: int | None = None
        self.copies: list[tuple[_Shared, np.ndarray]] = []

    def complete(self) -> None:
        copied = 0
        for target, data in self.copies:
            target.write(data)
            copied += 2 * data.size
        require(copied == self.expected, f"{copied} bytes copied, {self.expected} expected")
        self.copies, self.expected = [], None
        self.done += 1


class _Barriers:
    def __init__(self, count: int) -> None:
        self.barriers = [_Barrier() for _ in range(count)]

    def index(self, i: Any) -> _Barrier:
        require(0 <= int(i) < len(self.barriers), "a barrier that there is not")
        return self.barriers[int(i)]


class _TensorDescriptor:
    """Stands for the host's: boxes of `block_shape` out of strided memory."""

    def __init__(self, base: Tensor, shape: list[int], strides: list[int], block_shape: list[int], layout: Any) -> None:
        require(base.data_ptr() % 16 == 0, "TMA wants tensors that begin at a multiple of 16 bytes")
        self.base, self.shape, self.strides = _array(base), list(shape), list(strides)
        self.block_shape, self.layout, self.dtype = list(block_shape), layout, "16 bits"
        self.block_type = types.SimpleNamespace(shape=self.block_shape)
        last = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        require(last <= self.base.size, "a descriptor reaches past its tensor")
        require(strides[-1] == 1 and all(2 * s % 16 == 0 for s in strides[:-1]), "TMA wants strides of 16 bytes")
        require(all(n > 0 for n in shape) and all(n <= 256 for n in block_shape), "sizes that TMA does not take")

    def read(self, corner: list[int]) -> np.ndarray:
        box = np.zeros(self.block_shape)
        strides = [s * self.base.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(self.base, self.shape, strides, writeable=False)
        low = [max(0, -c) for c in corner]
        high = [max(a, min(b, n - c)) for a, b, n, c in zip(low, self.block_shape, self.shape, corner, strict=True)]
        if all(b > a for a, b in zip(low, high, strict=True)):
            target = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            box[target] = view[tuple(slice(c + a, c + b) for c, a, b in zip(corner, low, high, strict=True))]
        return box


# Stand-ins for Triton's modules ---------------------------------------------------------------------


def _module(name: str, **names: Any) -> Any:
    made = types.ModuleType(name)
    made.__dict__.update(names)
    return made


def _stand_ins(emulator: Emulator) -> dict[str, types.ModuleType]:
    def jit(function: Any = None, **_: Any) -> Any:
        return function if function else jit

    gluon = "triton.experimental.gluon"
    language, hopper = _language(emulator), _hopper(emulator)
    package = _module(gluon, jit=jit, language=language)
    return {
        "triton": _module("triton", __version__=emulator.release),
        "triton.experimental": _module("triton.experimental", gluon=package),
        gluon: package,
        f"{gluon}.language": language,
        f"{gluon}.language.nvidia": _module(f"{gluon}.language.nvidia", hopper=hopper),
        f"{gluon}.language.nvidia.hopper": hopper,
        f"{gluon}.nvidia": _module(f"{gluon}.nvidia"),
        f"{gluon}.nvidia.hopper": _module(f"{gluon}.nvidia.hopper", TensorDescriptor=_TensorDescriptor),
    }


def _language(emulator: Emulator) -> Any:
    gl = _module("triton.experimental.gluon.language")

    def allocate(dtype: Any, shape: list[int], layout: Any) -> Any:
        if layout == "mbarrier":
            return _Barriers(shape[0])
        return _Shared(emulator, _Buffer(math.prod(shape)), 0, shape, layout)

    def addressed(pointer: _Pointer, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        at = np.broadcast_to(np.asarray(pointer.at), np.broadcast_shapes(np.shape(pointer.at), np.shape(mask)))
        there = np.broadcast_to(mask, at.shape)
        inside = (at >= 0) & (at < pointer.array.size)
        require(inside[there].all(), "a load or store outside of its tensor")
        return at, there

    def load(pointer: _Pointer, mask: Any = True, other: float = 0.0) -> _Values:
        at, there = addressed(pointer, mask)
        result = np.full(at.shape, float(other))
        result[there] = pointer.array[at[there]]
        return _values(result)

    def store(pointer: _Pointer, value: Any, mask: Any = True) -> None:
        at, there = addressed(pointer, mask)
        pointer.array[at[there]] = np.broadcast_to(value, at.shape)[there]

    def barrier() -> None:
        emulator.flush()
        if emulator.barriers_ready == 1:
            emulator.barriers_ready = 2

    def reduction(function: Callable[..., Any]) -> Callable[..., _Values]:
        return lambda value, axis: _values(function(value, axis))

    def reinterpret(view: _Shared, dtype: Any, shape: list[int], layout: Any) -> _Shared:
        return view.reinterpret(shape, layout)

    name = "reinterpret" if emulator.exact_views else "_reinterpret"
    gl.shared_memory_descriptor = type("shared_memory_descriptor", (), {name: staticmethod(reinterpret)})
    gl.constexpr = lambda value: value
    gl.float32 = gl.int64 = gl.uint8 = None  # conversions between them change nothing here
    gl.static_range, gl.program_id = range, lambda axis: emulator.program
    gl.NVMMASharedLayout = gl.NVMMADistributedLayout = gl.BlockedLayout = gl.SliceLayout = _Layout
    gl.maximum, gl.minimum = np.maximum, np.minimum
    gl.where = lambda condition, a, b: _values(np.where(condition, a, b))
    gl.max, gl.min, gl.sum = reduction(np.max), reduction(np.min), reduction(np.sum)
    gl.arange = lambda first, last, layout=None: _values(np.arange(first, last))
    gl.zeros = lambda shape, dtype=None, layout=None: np.zeros(shape)
    gl.convert_layout = lambda value, layout: _values(emulator.registers(value))
    gl.permute = lambda value, order: np.transpose(emulator.registers(value), order)
    gl.reshape = lambda value, shape: _values(np.reshape(value, shape))
    gl.allocate_shared_memory, gl.load, gl.store = allocate, load, store
    setattr(gl, "thread_barrier" if emulator.release.startswith("3.6") else "barrier", barrier)
    return gl


def _hopper(emulator: Emulator) -> Any:
    def expect(barrier: _Barrier, size: int, pred: Any = True) -> None:
        if pred:
            require(emulator.barriers_ready == 2, "a copy before all warps and TMA know the barriers")
            require(barrier.expected is None, "expect before the phase before was complete")
            barrier.expected = size

    def copy(
        descriptor: _TensorDescriptor, corner: list[int], barrier: _Barrier, target: _Shared, pred: Any = True
    ) -> None:
        if not pred:
            return
        barrier.copies.append((target, descriptor.read([int(c) for c in corner])))
        arrived = sum(2 * data.size for _, data in barrier.copies)
        if emulator.order == "early" and arrived == barrier.expected:
            barrier.complete()

    def wait(barrier: _Barrier, phase: Any) -> None:
        if barrier.copies:
            barrier.complete()
        there = barrier.done > 0 and (barrier.done - 1) % 2 == phase
        require(there, f"wait for phase {phase} when {barrier.done} are complete: it would hang or go on too early")

    def fence() -> None:
        emulator.barriers_ready = max(emulator.barriers_ready, 1)

    def mma(a: _Shared, b: _Shared, accumulator: np.ndarray, is_async: bool = False) -> np.ndarray:
        def work() -> None:
            accumulator[...] += a.matrix() @ b.matrix()

        emulator.issued.append(work)
        if not is_async:
            emulator.retire(0)
        return accumulator

    def mma_wait(num_outstanding: int, deps: tuple[Any, ...]) -> Any:
        emulator.retire(num_outstanding)
        return deps if len(deps) > 1 else deps[0]

    def init(barrier: _Barrier, count: int) -> None:
        require(count == 1, "one thread starts the copies")

    return _module(
        "triton.experimental.gluon.language.nvidia.hopper",
        mbarrier=types.SimpleNamespace(MBarrierLayout=lambda: "mbarrier", init=init, expect=expect, wait=wait),
        tma=types.SimpleNamespace(**{"async_load" if emulator.exact_views else "async_copy_global_to_shared": copy}),
        fence_async_shared=fence,
        warpgroup_mma=mma,
        warpgroup_mma_wait=mma_wait,
    )
