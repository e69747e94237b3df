"""CUDA graphs on a CPU: what PyTorch's operators do, recorded operator by operator, and done again in the same memory.

As on a GPU: recording changes nothing; numbers of Python stay what they were; a replay reads and writes the addresses
of the recording; reading a number from the device is an error; the memory that a recording had freed belongs to the
other recordings of its pool, here to NaN.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glyphcrm.modeling import backend, model, packed_attention, packing
from glyphcrm.training import graphed_gradients

# Readings of values by the host, which a capture forbids.
READINGS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten._unique2.default)
EMPTY = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided")


def storage(tensor: Tensor) -> int:
    """Return what identifies the memory of a tensor as long as it lives."""
    return tensor.untyped_storage()._cdata


def poison(tensor: Tensor) -> None:
    """Fill all of a tensor's memory with bits that are NaN, or -1."""
    torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(255)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments or results of an operator."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)


def detached(value: Any) -> Any:
    """Return an argument of an operator with aliases in place of its tensors."""
    if isinstance(value, Tensor):
        return value.detach()
    return [detached(each) for each in value] if isinstance(value, (tuple, list)) else value


class Operation:
    """One call of an operator."""

    def __init__(self, operator: Any, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        # Aliases: who else holds the memory can then be counted.
        self.operator, self.results = operator, [result.detach() for result in results]
        self.args, self.kwargs = detached(args), {name: detached(value) for name, value in kwargs.items()}
        arguments = operator._schema.arguments
        given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
        self.written = [
            tensor
            for argument, value in given
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors_in(value)
        ]
        read = {storage(x) for x in tensors_in([*args, *kwargs.values()])}
        self.made = [result for result in self.results if storage(result) not in read]

    def again(self) -> None:
        if self.operator._schema.name in EMPTY:
            for result in self.results:
                poison(result)
        elif self.written:
            self.operator(*self.args, **self.kwargs)
        elif self.made:  # else it is a view
            results = tensors_in(self.operator(*self.args, **self.kwargs))
            for place, result in zip(self.results, results, strict=True):
                place.copy_(result)

    def tensors(self) -> Iterator[Tensor]:
        """Yield all aliases that this holds."""
        return tensors_in([self.args, [*self.kwargs.values()], self.results])


class Tape(TorchDispatchMode):
    """Takes down operations, and undoes what they have written to memory from before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.made: dict[int, Tensor] = {}  # by their memory
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READINGS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **kwargs) if not self._writes(func) else None
        if result is None:
            probe = Operation(func, args, kwargs, [])
            for tensor in probe.written:
                if storage(tensor) not in self.made and storage(tensor) not in self._before:
                    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                    self._before[storage(tensor)] = (whole, whole.clone())
            result = func(*args, **kwargs)
        operation = Operation(func, args, kwargs, list(tensors_in(result)))
        for tensor in operation.made:
            self.made[storage(tensor)] = tensor
        self.operations.append(operation)
        return result

    @staticmethod
    def _writes(func: Any) -> bool:
        return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)

    def undo(self) -> None:
        """Leave memory from before as it was, and in the rest nothing that has a meaning."""
        for whole, content in self._before.values():
            whole.copy_(content)
        for tensor in self.made.values():
            poison(tensor)


def as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """Let models take packed rows, and let the host read no values of theirs; few characters make a size of their own.

    Kernels are PyTorch's, as the emulator does not see what C functions write.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("glyphcrm_kernels.") and hasattr(module, "check_index"):
            patch.setattr(module, "check_index", lambda *_: None)
    patch.setattr(backend, "OVERRIDE", "reference")
    patch.setattr(graphed_gradients, "CHARACTERS", 8)
    patch.setattr(packed_attention, "packed_way", lambda *_: "masked")
    patch.setattr(packing, "is_at_hand", lambda _: False)
    patch.setattr(model, "is_traced", lambda: True)


class EmulatedGraphs:
    """A `CudaRecorder` for the CPU."""

    def __init__(self) -> None:
        self.pools: dict[int, list[Tape]] = {}
        self.recorded = self.replayed = self.recovered = 0
        self.fails_at: int | None = None  # the number of the recording that fails
        self.failures = 1 << 10  # so many times
        self.memory = 1 << 10  # bytes; each recording takes 10 as long as it lives
        self._alive: weakref.WeakSet[Callable[[], None]] = weakref.WeakSet()

    def running(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def new_pool(self) -> int:
        self.pools[len(self.pools)] = []
        return len(self.pools) - 1

    def record(self, work: Callable[[], None], pool: int) -> Callable[[], None]:
        tape, state = Tape(), torch.get_rng_state()
        try:
            with tape:
                work()
            if self.recorded == self.fails_at and self.failures:
                self.failures -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            tape.undo()
            torch.set_rng_state(state)
        self.recorded += 1
        tapes = self.pools[pool]
        tapes.append(tape)
        freed = self._freed(tapes)

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                for operation in tape.operations:
                    operation.again()
            for tensor in freed:
                poison(tensor)

        self._alive.add(replay)
        return replay

    def room(self) -> int:
        return self.memory - 10 * len(self._alive)

    def recover(self) -> None:
        self.recovered += 1

    @staticmethod
    def _freed(tapes: list[Tape]) -> list[Tensor]:
        """Return what recordings of a pool have made and nobody holds but they."""
        aliases = [tensor for tape in tapes for operation in tape.operations for tensor in operation.tensors()]
        held = Counter(storage(tensor) for tensor in {id(alias): alias for alias in aliases}.values())
        made = {key: tensor for tape in tapes for key, tensor in tape.made.items()}
        uses = {key: torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) - 1 for key, tensor in made.items()}
        return [tensor for key, tensor in made.items() if uses[key] <= held[key]]
