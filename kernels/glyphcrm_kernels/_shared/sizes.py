"""Conditions on sizes that a graph may not know: how many distinct characters a batch has, only its values tell."""

from __future__ import annotations

import torch


def known(condition: bool | torch.SymBool, otherwise: bool) -> bool:
    """Return whether a condition on sizes holds; `otherwise` where a compiler or fake tensors cannot tell."""
    if torch.jit.is_tracing():  # a size is a tensor there
        return bool(condition)
    if type(condition) is bool and not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true  # sympy takes time to import

    return guard_or_true(condition) if otherwise else guard_or_false(condition)
