"""Every op of the registry, in each implementation that runs here, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from glyphcrm_kernels.registry import OPS
from torch import Tensor

from tests.kernels.checks import DEVICE, relative_rms
from tests.kernels.examples import EXAMPLES

TOLERANCE = 1e-5  # relative RMS of float32 against float64


def outputs_and_gradients(function: Any, arguments: dict[str, Any]) -> list[Tensor]:
    outputs = function(**arguments)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    leaves = [t for t in arguments.values() if isinstance(t, Tensor) and t.requires_grad]
    # The cosine's gradient is no constant, and one function of the output in every precision.
    return [*outputs, *torch.autograd.grad([output.sin().sum() for output in outputs], leaves)]


def doubled(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def test_every_op_has_an_example() -> None:
    assert EXAMPLES.keys() == OPS.keys()
    assert all(name == op.name == op.function.__name__ for name, op in OPS.items())


@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for name, op in OPS.items() for backend in ("auto", *op.implementations)]
)
def test_results_and_gradients_are_those_of_the_reference_in_float64(name: str, backend: str) -> None:
    torch.manual_seed(0)
    op, arguments = OPS[name], EXAMPLES[name](DEVICE)
    try:
        op.choice(**arguments, backend=backend)
    except ValueError as error:
        pytest.skip(str(error))
    found = outputs_and_gradients(lambda **given: op.function(**given, backend=backend), arguments)
    truth = outputs_and_gradients(op.reference, {name: doubled(value) for name, value in arguments.items()})
    assert len(found) == len(truth) > 3
    for i, (ours, true) in enumerate(zip(found, truth, strict=True)):
        assert relative_rms(ours, true) < TOLERANCE, f"result {i}"
