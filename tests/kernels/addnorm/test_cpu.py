"""The add-norm in C against float64, and its dropout against that of the Triton kernels."""

from __future__ import annotations

import pytest
import torch
from glyphcrm_kernels._shared import cpu_library
from glyphcrm_kernels._shared.dropout import drop_below
from glyphcrm_kernels.addnorm.cpu import _add_norm_cpu, _add_norm_cpu_backward
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.addnorm.test_triton import EPS, Inputs, make
from tests.kernels.checks import DEVICE, GuardedBuffers, assert_true

HERE = [n for n in cpu_library.LANES if cpu_library.lanes(n) == n]

pytestmark = [
    pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler"),
    pytest.mark.skipif(DEVICE != "cpu", reason="the tensors of the tests are on a GPU"),
]


def seeded(inputs: Inputs, backend: str, p: float) -> dict[str, Tensor]:
    torch.manual_seed(17)
    return inputs.results(inputs(backend, p=p, training=True))


@pytest.mark.parametrize("lanes", HERE)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.sampled_from([(1,), (2, 0), (3, 7), (63,), (65,), (5, 31)]),
    groups=st.sampled_from([1, 2, 3, 9, 48]),
    rows=st.sampled_from([None, 1, 9]),
    transposed=st.booleans(),
    index_dtype=st.sampled_from([torch.int64, torch.int32]),
    p=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 2**31),
)
@example(tokens=(130,), groups=3, rows=200, transposed=False, index_dtype=torch.int64, p=0.3, seed=0)
def test_results_are_true_and_dropout_is_that_of_the_triton_kernels(
    buffers: GuardedBuffers,
    monkeypatch: pytest.MonkeyPatch,
    lanes: int,
    tokens: tuple[int, ...],
    groups: int,
    rows: int | None,
    transposed: bool,
    index_dtype: torch.dtype,
    p: float,
    seed: int,
) -> None:
    monkeypatch.setattr(cpu_library, "lanes", lambda *channels: lanes)
    options = {"seed": seed, "transposed": transposed, "index_dtype": index_dtype, "place": buffers.place}
    inputs = make(tokens, groups * lanes, rows, **options)
    triton = seeded(inputs, "triton", p)
    kept = (triton["dx"] != 0) | (triton["dresidual"] == 0)  # where the gradient is 0, so is that of a kept element
    truth = inputs.truth(kept.double(), drop_below(p) / 65536)
    found = seeded(inputs, "auto", p)
    for name in truth:
        assert_true(name, found[name], truth[name], triton[name])
    buffers.assert_guards_unchanged()


def test_it_is_what_runs_by_default() -> None:
    inputs = make((5,), 24, 2)
    assert "add_norm_cpu" in inputs("auto").grad_fn.name()


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_number_of_threads_changes_no_bit(p: float) -> None:
    inputs = make((300,), 48, 7)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(seeded(inputs, "auto", p))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name in other:
            assert torch.equal(results[0][name], other[name]), name


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("rows", [None, 3])
def test_the_operators_keep_the_rules_of_pytorch(rows: int | None, p: float) -> None:
    x, residual, weight, bias, skip, index, dy = make((2, 3), 24, rows)
    seed = torch.tensor([5]) if p else None
    arguments = (x, residual, weight, bias, skip, index, seed, drop_below(p), EPS)
    torch.library.opcheck(_add_norm_cpu.custom, arguments)
    _, mean, rstd = _add_norm_cpu.custom(*arguments)
    kept = [None if tensor is None else tensor.detach() for tensor in (x, residual, weight, mean, rstd, skip)]
    torch.library.opcheck(_add_norm_cpu_backward.custom, (dy, *kept, index, seed, drop_below(p)))


def test_nan_stays_in_its_row() -> None:
    inputs = make((6,), 24, None)
    with torch.no_grad():
        inputs.x[2, 3] = torch.nan
    y = inputs("auto")
    assert y[2].isnan().all() and y[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("dtypes", ["bfloat16", "wide residual"])
def test_other_dtypes_run_the_reference(dtypes: str) -> None:
    inputs = make((5,), 24, 2, dtypes)
    assert torch.equal(inputs("auto"), inputs("reference"))


def test_other_widths_and_forward_mode_run_the_reference() -> None:
    odd = make((5,), 13, 2)
    assert torch.equal(odd("auto"), odd("reference"))
    inputs = make((5,), 24, 2)
    tangent = torch.randn(5, 24)
    for backend in ("auto", "reference"):
        _, along = torch.func.jvp(lambda x, b=backend: inputs._replace(x=x)(b), (inputs.x.detach(),), (tangent,))
        assert along.isfinite().all() and along.any()
