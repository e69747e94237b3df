"""Triton and its language, or stand-ins that let the kernel files import where there is no Triton."""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton has wheels for Linux only

    class _Missing:
        """Takes the place of `triton` and `triton.language` while a kernel file is imported."""

        def jit(self, function: Any = None, **options: Any) -> Any:
            return function or (lambda decorated: decorated)

        def __getattr__(self, name: str) -> Any:
            return _Missing()

    triton = tl = _Missing()
    HAS_TRITON = INTERPRETED = False
else:
    HAS_TRITON = True
    # Triton decides when a kernel is decorated, so TRITON_INTERPRET counts before the import only.
    INTERPRETED = bool(triton.knobs.runtime.interpret)

__all__ = ["HAS_TRITON", "INTERPRETED", "tl", "triton"]
