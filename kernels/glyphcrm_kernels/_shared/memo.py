"""What calls remember of calls before them, as looking it up costs less than finding it out again.

Nothing that is remembered depends on values of tensors. Whoever changes what an answer rests on (a test that takes the
C functions away, say) lets all of it be forgotten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

MOST = 4096  # answers of a function, or of an op
F = TypeVar("F", bound=Callable[..., Any])
_forget: list[Callable[[], None]] = []


def remembered(function: F) -> F:
    """Decorate a function of hashable arguments, so that it answers a question once."""
    cached = functools.lru_cache(MOST)(function)
    _forget.append(cached.cache_clear)
    return cached  # type: ignore[return-value]


def answers() -> dict[Any, Any]:
    """Return an empty dictionary that `forget` empties."""
    made: dict[Any, Any] = {}
    _forget.append(made.clear)
    return made


def forget() -> None:
    """Let every question be asked anew."""
    for clear in _forget:
        clear()
