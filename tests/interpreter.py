"""Triton's interpreter without what it computes for nothing, which is half of its time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glyphcrm_kernels._shared.optional_triton import tl


def quicken() -> None:
    """Leave out checks whose answers nobody looks at, and do once what is done at every step."""
    from triton.runtime import interpreter

    # Overflow is computed but reported only with `debug`, which the interpreter has not.
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a device function; where its language is already the interpreter's, it need not be made so again."""
        languages = [value for value in function.fn.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.load) for language in languages):
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call

    find, found = interpreter._get_np_dtype, {}

    def remember(dtype: Any) -> Any:
        name = dtype.scalar.name
        return found[name] if name in found else found.setdefault(name, find(dtype))

    interpreter._get_np_dtype = remember
