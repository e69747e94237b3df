"""The cases of the benches: every op has some, every way is checked against the op's reference, before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from glyphcrm_kernels._shared.dispatch import Implementation, Op
from glyphcrm_kernels._shared.optional_triton import HAS_TRITON
from glyphcrm_kernels.registry import OPS

from bench import cases, exercise_kernels, test_kernels
from bench.cases import SMOKE, Case, Draw
from bench.peers import Way

# Of an op that is not there: its function, its arguments, its check.
PARTS = (lambda *_, backend: None), (lambda *given: given), (lambda *_: None)
SMALLEST = {case.op: case for case in cases.all_cases(SMOKE)}


def static_report() -> object:
    from bench import static_report

    return static_report.jobs(quick=True)


CONSUMERS: dict[str, Callable[[], object]] = {
    "benchmarks": lambda: test_kernels.pytest_generate_tests(Mock(config=Mock(getoption=lambda _: False))),
    "exercise": exercise_kernels.main,
    "static report": static_report,
}


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_an_op_without_cases_is_missed(consumer: str) -> None:
    if not HAS_TRITON and consumer != "benchmarks":
        pytest.skip("there is no Triton")
    fake = Op(
        "fake",
        lambda *_, backend: None,
        lambda *given: given,
        lambda *_: None,
        {"reference": Implementation(lambda *_: None)},
    )
    with (
        patch.dict(OPS, fake=fake),
        pytest.raises(LookupError, match=r"no cases of fake; add .* to CASES in .*cases\.py"),
    ):
        CONSUMERS[consumer]()


def test_a_kernel_that_is_not_launched_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    fake = Op(
        "fake",
        lambda *_, backend: None,
        lambda *given: given,
        lambda *_: None,
        {},
        kernels=SimpleNamespace(_forgotten_kernel=None),
    )  # type: ignore[arg-type]
    with (
        patch.dict(OPS, {"fake": fake}, clear=True),
        patch.dict(cases.CASES, fake=lambda sizes, device: []),
        patch.object(exercise_kernels, "DEVICE", "cpu"),
        pytest.raises(SystemExit, match="not launched: _forgotten_kernel"),
    ):
        exercise_kernels.main()


@pytest.mark.parametrize("op", OPS)
def test_ways_have_the_names_of_implementations(op: str) -> None:
    names = list(SMALLEST[op].ways)
    assert names[: len(OPS[op].implementations)] == list(OPS[op].implementations) and "reference" in names


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("op", OPS)
def test_what_computes_something_else_is_not_timed(op: str, training: bool) -> None:
    case = SMALLEST[op]
    test_kernels.check(case, case.ways["reference"], torch.float32, training)

    def wrong(inputs: dict[str, Any], p: float) -> Any:
        return tuple(1.01 * t for t in case.run("reference", inputs, p))

    with pytest.raises(AssertionError, match="output 0 is off by 1"):
        test_kernels.check(case, Way(wrong), torch.float32, training)


def test_what_auto_passes_over_is_skipped() -> None:
    attention, stem = SMALLEST["dropout_attention"], SMALLEST["glyph_stem"]

    def passed_over(case: Case, name: str, training: bool = True, dtype: torch.dtype = torch.float32) -> str:
        return test_kernels.passed_over(case, name, dtype, training)

    assert "without dropout" in passed_over(attention, "cpu", training=False)
    assert "on no GPU" in passed_over(stem, "triton")
    assert "float32" in passed_over(stem, "cpu", dtype=torch.float16)
    assert not any(passed_over(case, "reference") for case in SMALLEST.values())
    assert not passed_over(attention, "SDPA")


def test_empty_draws_have_the_shapes_of_random_ones() -> None:
    for case in SMALLEST.values():
        drawn, empty = (case.draw(Draw(torch.float16, numbers=numbers)) for numbers in (torch.randn, torch.empty))
        for name, t in drawn.items():
            assert (empty[name].shape, empty[name].dtype, empty[name].stride()) == (t.shape, t.dtype, t.stride())


@pytest.mark.parametrize("order", ["NCHW", "channels-last"])
@pytest.mark.parametrize(
    "case", [c for c in cases.all_cases(SMOKE) if "conv" in c.op or "stem" in c.op], ids=lambda c: f"{c.op}-{c.size}"
)
def test_peers_work_in_their_memory_order(case: Case, order: str) -> None:
    """Inputs, outputs, and the gradients that training starts from: what a model keeps from layer to layer."""
    wanted = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}[order]
    way = case.ways[f"conv2d, {order}"]
    steps: list[tuple[Any, ...]] = []
    with patch.object(test_kernels, "step", lambda *given: steps.append(given)):
        test_kernels.caller(case, way, [case.draw(Draw(torch.float32))], training=True)()
    ((_, _, inputs, p, cotangents),) = steps
    pictures = [*way.run(inputs, p), *cotangents, *(t for name, t in inputs.items() if name in ("x", "residual"))]
    assert all(tensor.is_contiguous(memory_format=wanted) for tensor in pictures)
