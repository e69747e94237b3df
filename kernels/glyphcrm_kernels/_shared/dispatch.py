"""The choice of an implementation, the same for every op.

An op lists its implementations in order of preference. Each says what keeps it from running on given arguments; an
empty text is nothing. ``backend="auto"`` takes the first that nothing keeps, a name insists on one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

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


class _Question(str):
    """A backend that is asked about, not run."""


@dataclass(frozen=True, eq=False)
class Op:
    """An operation and its implementations.

    Attributes:
        name: of the op, and of its function.
        function: the public one, with a keyword `backend`.
        implementations: by name, in order of preference; "reference" is the last and takes everything.
        operators: the custom operators that launch Triton kernels, by name.
        kernels: the module with those kernels, whose names end in "_kernel".
    """

    name: str
    function: Callable[..., Any]
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

    def choice(self, *args: Any, backend: str = "auto", **kwargs: Any) -> Choice:
        """Return what the function would run if it were called so; it raises what the function would."""
        return self.function(*args, **kwargs, backend=_Question(backend))

    def run(self, backend: str, *arguments: Any) -> Any:
        """Choose, and compute; the arguments are those of the implementations, which the function has checked.

        Raises:
            ValueError: an unknown backend, or a named one that does not take the arguments.
        """
        name, reason = self._choose(backend, arguments)
        return Choice(name, reason) if isinstance(backend, _Question) else self.implementations[name].run(*arguments)

    def _choose(self, backend: str, arguments: tuple[Any, ...]) -> tuple[str, str]:
        """Return an implementation's name and why not those before it."""
        passed = ""
        for name, implementation in self.implementations.items() if backend == "auto" else ():
            reason = implementation.drawback(*arguments) or implementation.obstacle(*arguments)
            if not reason:
                return name, passed
            passed += f"{'; ' if passed else ''}{name}: {reason}"
        if backend not in BACKENDS:
            raise ValueError(f"{self.name}: backend={backend!r} is none of {', '.join(BACKENDS)}")
        if backend not in self.implementations:
            obstacle = f"there is no {backend} implementation of it; name one of {', '.join(self.implementations)}"
        else:
            obstacle = self.implementations[backend].obstacle(*arguments)
        if obstacle:
            raise ValueError(f"{self.name}: {obstacle}, or use backend='auto'")
        return backend, ""
