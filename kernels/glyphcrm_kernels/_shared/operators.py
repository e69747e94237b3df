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
from torch.autograd.function import _SingleLevelFunction

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


def is_batched(inputs: Sequence[Any]) -> bool:
    """Return whether a tensor stands for several, as gradients do under ``is_grads_batched=True``.

    `torch.autograd.functional` asks for that, too (``vectorize=True``). These tensors pass for eager ones.
    """
    return any(isinstance(t, Tensor) and torch._C._functorch.is_legacy_batchedtensor(t) for t in inputs)


def is_exporting() -> bool:
    """Return whether `torch.export` looks; PyTorch's function says so under an older `torch.compile`, too."""
    return torch.compiler._is_exporting_flag


class Operator:
    """A body, and the two ways to it. A call returns the first `results` of what the body returns.

    Attributes:
        body: the function itself; to be called where gradients are not recorded.
        custom: the custom operator, which returns all that the body returns.
    """

    def __init__(self, name: str, body: Callable[..., Any], results: int | None) -> None:
        self.body = body
        self._public = _first if results == 1 else lambda outputs: outputs[:results]
        self._has_more = results is not None
        self.custom = torch.library.custom_op(name, mutates_args=())(body)
        self.custom.register_autograd(_refuse)
        self._name = name.partition("::")[2]
        self._overload = getattr(torch.ops.glyphcrm, self._name).default
        self._function: Any = None

    def __call__(self, *inputs: Any) -> Any:
        if not is_eager(inputs) or (self._function is None and is_batched(inputs)):
            outputs = self._overload(*inputs)
        elif not torch.is_grad_enabled():
            outputs = self.body(*inputs)
        elif self._function is None:  # in a backward that is recorded; it takes no second derivative
            outputs = self._overload(*inputs)
        else:
            return self._function.apply(*inputs)
        return self._public(outputs) if self._has_more else outputs

    def register_fake(self, fake: F) -> F:
        """Take the rule for outputs without values; as the method of a custom operator."""
        self.custom.register_fake(fake)
        return fake

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Take the derivative; as the method of a custom operator.

        `backward` calls operators without a derivative, which are refused, and operations of PyTorch's. So a second
        derivative is refused, or right where it needs the latter alone.
        """
        self.custom.register_autograd(backward, setup_context=setup_context)
        body, public, has_more = self.body, self._public, self._has_more

        def forward(ctx: Any, *inputs: Any) -> Any:
            outputs = body(*inputs)
            setup_context(ctx, inputs, outputs)
            return public(outputs) if has_more else outputs

        def differentiate(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)

        rules = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
        # The base of `torch.autograd.Function`, whose `apply` first looks for what `is_eager` has ruled out.
        self._function = type(self._name, (_SingleLevelFunction,), rules)


def operator(name: str, results: int | None = None) -> Callable[[Callable[..., Any]], Operator]:
    """Make the decorated function the body of an operator ``glyphcrm::NAME``; its annotations are the schema.

    `results` is how many of the tensors that it returns are for the caller, where those behind them are for the
    backward alone; one comes by itself, not in a tuple. `setup_context` keeps the others and marks them as not
    differentiable, and `backward` gets no more gradients than there are results, or None for the others.
    """
    return lambda body: Operator(name, body, results)


def _refuse(ctx: Any, *gradients: Any) -> Any:
    """Take the place of the derivative that an operator does not have."""
    raise RuntimeError(
        "the kernels have no second derivative; use backend='reference' where gradients are differentiated"
    )


def _first(outputs: tuple[Tensor, ...]) -> Tensor:
    return outputs[0]
