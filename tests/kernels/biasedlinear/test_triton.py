"""The linear layer's bias gradient against float64, when it is a kernel's, and what the op refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from glyphcrm_kernels import biased_linear, choice
from glyphcrm_kernels._shared import targets
from glyphcrm_kernels._shared.launch import intercepted
from glyphcrm_kernels.biasedlinear.triton import column_sum
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.kernels.checks import DEVICE, GuardedBuffers, assert_true, gradients

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def leaves(*shape: int, n: int = 6, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return x, weight and bias, of which `shape` is that of the result."""
    shapes = (*shape[:-1], n), (shape[-1], n), (shape[-1],)
    return [torch.randn(s, device=DEVICE, dtype=dtype, requires_grad=True) for s in shapes]


@pytest.fixture
def launches() -> Iterator[list[str]]:
    """The names of the kernels that run."""
    names: list[str] = []
    with intercepted(lambda launch: (names.append(launch.kernel.__name__), launch.start())):
        yield names


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.sampled_from([(), (0,), (1,), (5, 7), (32,), (33,), (270,)]),
    d=st.sampled_from([1, 7, 64, 65, 256, 260, 768]),
    dtype=st.sampled_from(DTYPES),
    into=st.sampled_from(DTYPES),
    multiprocessors=st.sampled_from([1, 2, 132]),
    seed=st.integers(0, 2**31),
)
@example(lengths=(4_500,), d=3, dtype=torch.float32, into=torch.float32, multiprocessors=132, seed=0)
@example(lengths=(9,), d=1_300, dtype=torch.float32, into=torch.float32, multiprocessors=1, seed=0)
def test_column_sums_are_true(
    buffers: GuardedBuffers,
    lengths: tuple[int, ...],
    d: int,
    dtype: torch.dtype,
    into: torch.dtype,
    multiprocessors: int,
    seed: int,
) -> None:
    """With as many programs as GPUs of several sizes would start; the first one's rows are not next to each other."""
    generator = torch.Generator().manual_seed(seed)
    values = buffers.place((1 + torch.randn(*lengths, d, generator=generator)).to(dtype).to(DEVICE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "multiprocessors", lambda device: multiprocessors)
        sums = column_sum(values, into)
    rows = values.double().reshape(-1, d)
    assert_true("sums", sums, rows.sum(0), rows.sum(0).to(into))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_those_of_pytorch(dtype: torch.dtype) -> None:
    """All but the bias' gradient are PyTorch's own, bit for bit; that one is closer to the truth."""
    torch.manual_seed(0)
    inputs = leaves(3, 50, 20, dtype=dtype)
    dy = torch.randn(3, 50, 20, device=DEVICE).to(dtype)
    y, expected = biased_linear(*inputs, backend="triton"), F.linear(*inputs)
    assert torch.equal(y, expected)
    *ours, dbias = gradients(y, inputs, [dy])
    *pytorchs, pytorch = gradients(expected, inputs, [dy])
    assert all(torch.equal(a, b) for a, b in zip(ours, pytorchs, strict=True))
    assert_true("dbias", dbias, dy.double().sum((0, 1)), pytorch)


@pytest.mark.parametrize("layout", ["transposed", "expanded"])
def test_a_gradient_in_any_layout(buffers: GuardedBuffers, layout: str) -> None:
    inputs = leaves(4, 5, 24)
    if layout == "transposed":  # as attention gives it
        dy = torch.randn(4, 24, 5, device=DEVICE).mT
    else:
        dy = torch.randn((), device=DEVICE).expand(4, 5, 24)
    ours, expected = (
        gradients(f(*inputs), inputs, [dy]) for f in (lambda *a: biased_linear(*a, backend="triton"), F.linear)
    )
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_autocast_leaves_the_gradient_of_a_float32_bias_unrounded() -> None:
    inputs = leaves(300, 24)
    dy = torch.randn(300, 24, device=DEVICE).bfloat16()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y, expected = biased_linear(*inputs, backend="triton"), F.linear(*inputs)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    dbias = gradients(y, inputs, [dy])[2]
    assert_true("dbias", dbias, dy.double().sum(0), dy.float().sum(0))


def test_not_a_number_stays_in_its_column() -> None:
    values = torch.ones(70, 40, device=DEVICE)
    values[66, 33] = float("nan")
    sums = column_sum(values, torch.float32)
    assert sums[33].isnan() and (sums[torch.arange(40) != 33] == 70).all()


def test_twice_is_bitwise_the_same() -> None:
    values = torch.randn(500, 70, device=DEVICE)
    assert torch.equal(column_sum(values, torch.float32), column_sum(values, torch.float32))


def test_the_kernel_runs_only_where_the_bias_is_trained(launches: list[str]) -> None:
    x, weight, bias = leaves(5, 8)
    with torch.no_grad():
        assert not biased_linear(x, weight, bias, backend="triton").requires_grad
    torch.autograd.grad(biased_linear(x, weight, bias.detach(), backend="triton").sum(), [x, weight])
    assert launches == []
    alone = biased_linear(x.detach(), weight.detach(), bias, backend="triton")
    assert torch.autograd.grad(alone.sum(), [bias])[0].tolist() == [5] * 8
    assert launches == ["_column_sum_kernel"] * 2


def test_checkpointing_gives_the_same_gradients() -> None:
    inputs = leaves(9, 24)
    call = lambda *given: biased_linear(*given, backend="triton").sin()  # noqa: E731
    plain = gradients(call(*inputs), inputs, [torch.ones(9, 24, device=DEVICE)])
    again = gradients(checkpoint(call, *inputs, use_reentrant=False), inputs, [torch.ones(9, 24, device=DEVICE)])
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (), (0,)])
def test_a_second_derivative_is_pytorchs(shape: tuple[int, ...]) -> None:
    _, *parameters = leaves(4, 5)
    x = torch.randn(*shape, parameters[0].shape[1], device=DEVICE, requires_grad=True)
    found = []
    for call in (lambda *given: biased_linear(*given, backend="triton"), F.linear):
        given = [x, *parameters]
        first = torch.autograd.grad(call(*given).sin().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), given))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_compiler_keeps_the_sum_to_itself() -> None:
    inputs = leaves(3, 4)
    seen: list[Any] = []

    def call(*given: Tensor) -> Tensor:
        seen.append(choice("biased_linear", *given))
        return biased_linear(*given)

    y = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(y, F.linear(*inputs)) and seen[0].implementation == "reference"
    named = torch.compile(lambda *given: biased_linear(*given, backend="triton"), backend="eager")
    with pytest.raises(ValueError, match="biased_linear: a compiler, tracer or transform looks at the call; leave"):
        named(*inputs)
    by_transform = torch.func.grad(lambda b: biased_linear(inputs[0].detach(), inputs[1].detach(), b).sum())
    assert by_transform(inputs[2].detach()).tolist() == [3] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, "x is torch.int64; it must be floating point"),
        ({"x": torch.ones(())}, r"x has shape \(\); it must be \(..., 3\)"),
        ({"x": torch.ones(2, 4)}, r"x has shape \(2, 4\)"),
        ({"weight": torch.ones(3)}, r"weight has shape \(3,\); it must be \(d, n\)"),
        ({"weight": torch.ones(0, 3)}, r"weight has shape \(0, 3\)"),
        ({"bias": torch.ones(3)}, r"bias has shape \(3,\); it must be \(4,\)"),
        ({"bias": torch.ones(4, device="meta")}, "bias is on meta, but x is on"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Tensor], message: str) -> None:
    arguments = {"x": torch.ones(2, 3), "weight": torch.ones(4, 3), "bias": torch.ones(4), **changes}
    arguments = {n: t if t.is_meta else t.to(DEVICE) for n, t in arguments.items()}
    with pytest.raises(ValueError, match=f"biased_linear: {message}"):
        biased_linear(**arguments)
