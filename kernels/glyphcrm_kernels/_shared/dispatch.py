"""The choice of an implementation, the same for every op.

An op lists its implementations in order of preference. Each says what keeps it from running on given arguments; an
empty text is nothing. ``backend="auto"`` takes the first that nothing keeps, a name insists on one.

Checks and choice rest on shapes, dtypes, devices and settings, so an eager call remembers them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from glyphcrm_kernels._shared.memo import MOST, answers
from glyphcrm_kernels._shared.operators import is_eager, is_exporting

BACKENDS = ("auto", "hopper", "triton", "cpu", "reference")


def nothing(*arguments: object) -> str:
    """Return the empty text: no obstacle, no drawback."""
    return ""


class Implementation(NamedTuple):
    """One way to compute an op. All three functions have the same arguments, an op's own.

    Attributes:
        run: computes the op.
        obstacle: why it cannot, and what to do instead: "fact; remedy", to which ", or use backend='auto'" is added.
        drawback: why "auto" passes it over although it could.
    """

    run: Callable[..., Any]
    obstacle: Callable[..., str] = nothing
    drawback: Callable[..., str] = nothing


class Choice(NamedTuple):
    """What would run, and why none of those that are preferred to it."""

    implementation: str
    reason: str


@dataclass(frozen=True, eq=False)
class Op:
    """An operation and its implementations.

    Attributes:
        name: of the op, and of its function.
        function: the public one, with a keyword `backend`.
        arguments: from all arguments of the function but `backend`, in their order, to those of the implementations,
            of which the first is a tensor.
        check: raises `ValueError` unless the arguments of the implementations fit each other; it looks at no values.
        implementations: by name, in order of preference; "reference" is the last and takes everything.
        kernels: the module with its Triton kernels, whose names end in "_kernel".
    """

    name: str
    function: Callable[..., Any]
    arguments: Callable[..., tuple[Any, ...]]
    check: Callable[..., None]
    implementations: Mapping[str, Implementation]
    kernels: ModuleType | None = None
    _chosen: dict[Any, str] = field(default_factory=answers, init=False, repr=False)

    @property
    def reference(self) -> Callable[..., Any]:
        """The definition in PyTorch: the function without `backend`."""
        return functools.partial(self.function, backend="reference")

    @property
    def kernel_names(self) -> set[str]:
        """The names of the Triton kernels."""
        return {name for name in vars(self.kernels or object) if name.endswith("_kernel")}

    def choice(self, *args: Any, **kwargs: Any) -> Choice:
        """Return what the function would run if it were called so; it raises what the function would."""
        call = inspect.signature(self.function).bind(*args, **kwargs)
        call.apply_defaults()
        backend = call.arguments.pop("backend")
        arguments = self.arguments(*call.arguments.values())
        self.check(*arguments)
        return self._choose(backend, arguments)

    def run(self, backend: str, *arguments: Any) -> Any:
        """Check, choose, and compute; the arguments are those of the implementations.

        Raises:
            ValueError: what `check` raises; an unknown backend, or a named one that does not take the arguments.
        """
        if not is_eager(arguments):
            self.check(*arguments)
            return self.implementations[self._choose(backend, arguments).implementation].run(*arguments)
        kind = arguments[0].device.type
        call = (
            backend,
            torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
            forward_ad._current_level >= 0,
            *[
                (a.shape, a.dtype, a.device) if isinstance(a, Tensor) else tuple(a) if type(a) is list else a
                for a in arguments
            ],
        )
        name = self._chosen.get(call)
        if name is None:
            self.check(*arguments)
            name = self._choose(backend, arguments).implementation
            if len(self._chosen) >= MOST:
                self._chosen.clear()
            self._chosen[call] = name
        return self.implementations[name].run(*arguments)

    def _choose(self, backend: str, arguments: tuple[Any, ...]) -> Choice:
        """Return an implementation's name and why not those before it."""
        passed = ""
        for name, implementation in self.implementations.items() if backend == "auto" else ():
            reason = _not_exported(name) or implementation.drawback(*arguments) or implementation.obstacle(*arguments)
            if not reason:
                return Choice(name, passed)
            passed += f"{'; ' if passed else ''}{name}: {reason}"
        if backend not in BACKENDS:
            raise ValueError(f"{self.name}: backend={backend!r} is none of {', '.join(BACKENDS)}")
        if backend not in self.implementations:
            obstacle = f"there is no {backend} implementation of it; name one of {', '.join(self.implementations)}"
        else:
            obstacle = self.implementations[backend].obstacle(*arguments)
        if obstacle:
            raise ValueError(f"{self.name}: {obstacle}, or use backend='auto'")
        return Choice(backend, "")


def _not_exported(implementation: str) -> str:
    """Return why `torch.export` passes an implementation over, or an empty string."""
    if implementation != "reference" and is_exporting():
        return "an exported program runs without this package"
    return ""
