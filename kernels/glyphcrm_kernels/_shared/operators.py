"""Operators: functions of tensors with a body that PyTorch does not look into, and a derivative of their own.

There are two ways to one. `torch.library.custom_op` is what compilers, `torch.export`, fake tensors and other
subclasses, dispatch modes, `torch.func` and tracing see, and what makes shapes without values; it costs the host
several times as much as the body. A call that none of these looks at goes through one `torch.autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The types of what an eager call passes; a subclass of Tensor is none of them.
EAGER_TYPES = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, list, torch.dtype})
F = TypeVar("F", bound=Callable[..., Any])


def is_eager(inputs: Sequence[Any]) -> bool:
    """Return whether nothing looks at a call with these inputs but autograd; the first is a tensor."""
    return (
        not torch.compiler.is_compiling()
        and EAGER_TYPES.issuperset(map(type, inputs))
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and not inputs[0].is_meta
    )


class Operator:
    """A body, and the two ways to it.

    Attributes:
        body: the function itself; to be called where gradients are not recorded.
        custom: the custom operator.
    """

    def __init__(self, name: str, body: Callable[..., Any]) -> None:
        self.body = body
        self.custom = torch.library.custom_op(name, mutates_args=())(body)
        self._name = name.partition("::")[2]
        self._overload = getattr(torch.ops.glyphcrm, self._name).default
        self._function: Any = None

    def __call__(self, *inputs: Any) -> Any:
        if not is_eager(inputs):
            return self._overload(*inputs)
        if self._function is None or not torch.is_grad_enabled():
            return self.body(*inputs)
        return self._function.apply(*inputs)

    def register_fake(self, fake: F) -> F:
        """Take the rule for outputs without values; as the method of a custom operator."""
        self.custom.register_fake(fake)
        return fake

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Take the derivative; as the method of a custom operator. A second derivative is refused."""
        self.custom.register_autograd(backward, setup_context=setup_context)
        body, refusing = self.body, once_differentiable(backward)

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = body(*inputs)
            setup_context(ctx, inputs, output)
            return output

        def differentiate(ctx: Any, *gradients: Any) -> Any:
            return (refusing if torch.is_grad_enabled() else backward)(ctx, *gradients)

        rules = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
        self._function = type(self._name, (torch.autograd.Function,), rules)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make the decorated function the body of an operator ``glyphcrm::NAME``; its annotations are the schema."""
    return lambda body: Operator(name, body)
