"""Losses that hold gradients, such as a gradient penalty: right or refused, never a part of the truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from glyphcrm_kernels.registry import OPS
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.kernels.checks import DEVICE, relative_rms
from tests.kernels.examples import EXAMPLES

REFUSED = "the kernels have no second derivative; use backend='reference'"


def penalty(name: str, way: str, constant: bool, arguments: dict[str, Any]) -> list[Tensor]:
    """Return the gradients of a loss that holds the gradients of the first output for all inputs.

    Those are of a linear function of it if `constant`; then what they are given does not depend on any input.
    """
    leaves = [t for t in arguments.values() if isinstance(t, Tensor) and t.requires_grad]
    outputs = OPS[name].function(**arguments)
    y = outputs if isinstance(outputs, Tensor) else outputs[0]
    scalar = (y * torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)).sum() if constant else y.sin().sum()
    first = torch.autograd.grad(scalar, leaves, create_graph=True, allow_unused=True)
    loss = y.square().mean() + sum(t.square().sum() for t in first if t is not None)
    if way == "grad":
        return list(torch.autograd.grad(loss, leaves))
    loss.backward()
    return [t.grad for t in leaves if t.grad is not None]


def doubled(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("way", ["backward", "grad"])
@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for name, op in OPS.items() for backend in ("auto", *op.implementations)]
)
def test_a_gradient_penalty_is_right_or_refused(name: str, backend: str, way: str, constant: bool) -> None:
    torch.manual_seed(0)
    op, arguments = OPS[name], EXAMPLES[name](DEVICE) | {"backend": backend}
    try:
        chosen = op.choice(**arguments).implementation
    except ValueError as error:
        pytest.skip(str(error))
    exact = {key: doubled(value) for key, value in arguments.items()} | {"backend": "reference"}
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative, either
        truth = penalty(name, way, constant, exact)
        if chosen != "reference" and name != "biased_linear":
            with pytest.raises(RuntimeError, match=REFUSED):
                penalty(name, way, constant, arguments)
            return
        found = penalty(name, way, constant, arguments)
    assert len(found) == len(truth) > 1
    for ours, true in zip(found, truth, strict=True):
        assert relative_rms(ours, true) < 1e-4
