"""Tensors that are not as they lie in memory: of many at once (`torch.vmap`, batched gradients), lazily negative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from glyphcrm_kernels.registry import OPS
from torch import Tensor

from tests.kernels.checks import DEVICE
from tests.kernels.examples import EXAMPLES

TENSORS = [
    (op, name)
    for op, example in EXAMPLES.items()
    for name, value in example("cpu").items()
    if isinstance(value, Tensor)
]


def first(outputs: Any) -> Tensor:
    """Return the first output of an op, a function of all inputs that are trained."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_vmap_over_any_tensor(op: str, name: str) -> None:
    torch.manual_seed(0)
    arguments = {key: v.detach() if isinstance(v, Tensor) else v for key, v in EXAMPLES[op](DEVICE).items()}
    arguments |= {"p": 0.0} if "p" in arguments else {}
    given = torch.stack([arguments[name], arguments[name].flip(0)])

    def call(changed: Tensor) -> Tensor:
        return first(OPS[op].function(**arguments | {name: changed}))

    torch.testing.assert_close(torch.vmap(call)(given), torch.stack([call(one) for one in given]), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU nobody looks at indices")
@pytest.mark.parametrize(("op", "name"), [("add_norm", "index"), ("glyph_stem", "rows"), ("glyph_stem_conv", "rows")])
def test_an_index_out_of_range_is_found_under_vmap(op: str, name: str) -> None:
    arguments = EXAMPLES[op]("cpu")
    given = torch.stack([arguments[name], arguments[name] - 100])

    def call(changed: Tensor) -> Tensor:
        return first(OPS[op].function(**arguments | {name: changed}))

    for call_ in (torch.vmap(call), torch.vmap(lambda one: torch.vmap(call)(one[None]))):
        with pytest.raises(ValueError, match=rf"{name} holds -\d+; it must be in \[0, "):
            call_(given)


@pytest.mark.parametrize(
    ("op", "backend"), [(name, backend) for name, op in OPS.items() for backend in ("auto", *op.implementations)]
)
def test_many_gradients_at_once(op: str, backend: str) -> None:
    torch.manual_seed(0)
    arguments = EXAMPLES[op](DEVICE) | {"backend": backend}
    try:
        OPS[op].choice(**arguments)
    except ValueError as error:
        pytest.skip(str(error))
    leaves = [t for t in arguments.values() if isinstance(t, Tensor) and t.requires_grad]
    y = first(OPS[op].function(**arguments))
    directions = torch.randn(3, *y.shape, device=DEVICE)
    found = torch.autograd.grad(y, leaves, directions, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, leaves, direction, retain_graph=True) for direction in directions]
    for ours, expected in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(expected))


@pytest.mark.parametrize("op", ["add_norm", "dropout_attention", "biased_linear"])
def test_a_jacobian_at_once(op: str) -> None:
    arguments = EXAMPLES[op](DEVICE)
    name = next(iter(arguments))

    def call(changed: Tensor) -> Tensor:
        return first(OPS[op].function(**arguments | {name: changed}))

    at_once, row_by_row = (
        torch.autograd.functional.jacobian(call, arguments[name], vectorize=vectorize) for vectorize in (True, False)
    )
    torch.testing.assert_close(at_once, row_by_row)


@pytest.mark.parametrize(
    ("op", "backend"), [(name, backend) for name, op in OPS.items() for backend in ("auto", *op.implementations)]
)
def test_lazily_negative_tensors_are_read_with_their_sign(op: str, backend: str) -> None:
    """As the imaginary part of a conjugate is, and the gradient that comes back to one."""
    arguments = EXAMPLES[op](DEVICE) | {"backend": backend, **({"p": 0.0} if "p" in EXAMPLES[op](DEVICE) else {})}
    try:
        OPS[op].choice(**arguments)
    except ValueError as error:
        pytest.skip(str(error))

    def negative(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return torch._neg_view(-value.detach()).requires_grad_(value.requires_grad) if floating else value

    results = []
    for lazily in (False, True):
        form: Callable[[Any], Any] = negative if lazily else lambda value: value
        given = {name: form(value) for name, value in arguments.items()}
        leaves = [t for t in given.values() if isinstance(t, Tensor) and t.requires_grad]
        y = first(OPS[op].function(**given))
        results.append([y, *torch.autograd.grad(y, leaves, form(torch.ones_like(y)))])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected)
