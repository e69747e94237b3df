"""The choice of an implementation, the same for every op.

An op lists its implementations in order of preference. Each says what keeps it from running on given arguments; an
empty text is nothing. ``backend="auto"`` takes the first that nothing keeps, a name insists on one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

BACKENDS = ("auto", "triton", "cpu", "reference")


def nothing(*arguments: object) -> str:
    """Return the empty text: no obstacle, no drawback."""
    return ""


class Implementation(NamedTuple):
    """One way to compute an op. All three are called with what `Op.prepare` returns.

    Attributes:
        run: computes the op.
        obstacle: why it cannot, and what would do: "fact; remedy", to which ", or use backend='auto'" is added.
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
        function: the public one; `backend` is its last parameter.
        prepare: checks the function's arguments but `backend`, in their order, and returns those of `Implementation`.
        implementations: by name, in order of preference; "reference" is the last and takes everything.
        operators: the custom operators through which Triton kernels are launched, by name.
        kernels: the module with those kernels, whose names end in "_kernel".
    """

    name: str
    function: Callable[..., Any]
    prepare: Callable[..., tuple[Any, ...]]
    implementations: Mapping[str, Implementation]
    operators: Mapping[str, Any] = field(default_factory=dict)
    kernels: ModuleType | None = None

    @property
    def reference(self) -> Callable[..., Any]:
        """The definition in PyTorch: the function without `backend`."""
        return functools.partial(self.function, backend="reference")

    @property
    def kernel_names(self) -> set[str]:
        """The names of the Triton kernels."""
        return {name for name in vars(self.kernels or object) if name.endswith("_kernel")}

    def run(self, backend: str, *arguments: Any) -> Any:
        """Check the function's arguments, choose, and compute.

        Raises:
            ValueError: what `prepare` finds, an unknown backend, or a named one that cannot run.
        """
        prepared = self.prepare(*arguments)
        name, _ = self._choose(backend, prepared)
        return self.implementations[name].run(*prepared)

    def choice(self, *args: Any, **kwargs: Any) -> Choice:
        """Return what the function would run if it were called so; it raises what the function would."""
        call = inspect.signature(self.function).bind(*args, **kwargs)
        call.apply_defaults()
        backend = call.arguments.pop("backend")
        name, passed = self._choose(backend, self.prepare(*call.arguments.values()))
        return Choice(name, "; ".join(passed) if backend == "auto" else f"backend={backend!r}")

    def _choose(self, backend: str, prepared: tuple[Any, ...]) -> tuple[str, list[str]]:
        """Return an implementation's name and, with "auto", why not those before it."""
        if backend == "auto":
            passed = []
            for name, implementation in self.implementations.items():
                reason = implementation.drawback(*prepared) or implementation.obstacle(*prepared)
                if not reason:
                    return name, passed
                passed.append(f"{name}: {reason}")
        if backend not in BACKENDS:
            raise ValueError(f"{self.name}: backend={backend!r} is none of {', '.join(BACKENDS)}")
        if backend not in self.implementations:
            obstacle = f"there is no {backend} implementation of it; name one of {', '.join(self.implementations)}"
        else:
            obstacle = self.implementations[backend].obstacle(*prepared)
        if obstacle:
            raise ValueError(f"{self.name}: {obstacle}, or use backend='auto'")
        return backend, []
