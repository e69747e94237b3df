"""The fused operations and their peers: op x sizes x dtype x direction, a group for each.

    pytest bench/test_kernels.py --benchmark [--benchmark-json FILE]

The ways of a group are the op's implementations, by name, and its peers. An implementation that cannot run here, or
that backend="auto" passes over, is skipped with the reason. A machine's speed drifts, so the ratios, in the table at
the end and in the JSON, are measured apart from pytest-benchmark's rows: before each round of a way runs one of what
"auto" chooses, the group's first way, A B A B, and the ratio is that of the two medians.

Each round works on the next of several sets of random inputs that together exceed the caches. A way
that does not compute what the op's reference computes in float32 fails, and is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from statistics import median
from typing import Any

import pytest
import torch
from glyphcrm_kernels import choice
from glyphcrm_kernels.conv.record import UNTRIED
from glyphcrm_kernels.registry import OPS

from bench.cases import BASE, CPU, DROPOUT, SMOKE, Case, Draw, all_cases, step
from bench.ceilings import ceiling
from bench.clock import clock_for
from bench.peers import Inputs, Outputs, Way
from bench.results import RESULTS, Result

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bfloat16 is slower than float32 on most CPUs.
DTYPES = (torch.bfloat16, torch.float16, torch.float32) if DEVICE == "cuda" else (torch.float32,)
DIRECTIONS = ("inference", "training")  # forward; forward and backward, with dropout where the op has it

# Relative RMS of (outputs, gradients): enough to tell another function from rounding. Gradients jump
# where rounding decides a ReLU or the maximum of a window.
TOLERANCES = {torch.float32: (1e-5, 1e-2), torch.float16: (5e-3, 0.15), torch.bfloat16: (4e-2, 0.3)}
CPU_CACHE = 32 * 2**20
LARGEST_SETS = 8

clock = clock_for(DEVICE)
pytestmark = pytest.mark.benchmark(timer=clock)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each way; `torch.compile` only where something is measured."""
    measure = metafunc.config.getoption("--benchmark")
    sizes = SMOKE if not measure else BASE if DEVICE == "cuda" else CPU
    runs = [
        pytest.param(case, dtype, direction, name, id=f"{case.op}-{case.size}-{_name(dtype)}-{direction}-{name}")
        for case in all_cases(sizes, DEVICE)
        for dtype in DTYPES
        for direction in DIRECTIONS
        for name, way in case.ways.items()
        if (measure or not way.compiled) and (way.training or direction == "inference")
    ]
    metafunc.parametrize(("case", "dtype", "direction", "name"), runs)


@pytest.fixture(autouse=True)
def fair() -> Iterator[None]:
    """Exact float32 for all, cuDNN's fastest algorithms, and nothing left over from other compilations."""
    torch.manual_seed(0)
    torch.compiler.reset()
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
    torch.cuda.empty_cache()


def test_kernel(
    benchmark: Any, request: pytest.FixtureRequest, case: Case, dtype: torch.dtype, direction: str, name: str
) -> None:
    way, training = case.ways[name], direction == "training"
    if missing := way.missing or passed_over(case, name, dtype, training):
        pytest.skip(missing)
    benchmark.group = f"{case.op} {case.size}, {_name(dtype)}, {direction}"
    benchmark.name = name
    try:
        if not benchmark.enabled:
            benchmark(check, case, way, dtype, training)
            return
        check(case, way, dtype, training)
        result = measure(benchmark, case, name, dtype, direction)
    except torch.OutOfMemoryError:
        pytest.skip("the GPU's memory is too small")
    except (ImportError, RuntimeError) as error:
        if name in OPS[case.op].implementations:
            raise
        # Another's library that does not run here is no verdict on ours; a wrong result is no RuntimeError.
        pytest.skip(f"{name} does not run: {str(error).partition(chr(10))[0]}")
    benchmark.extra_info.update(result._asdict())
    request.config.stash[RESULTS].append(result)


def passed_over(case: Case, name: str, dtype: torch.dtype, training: bool) -> str:
    """Return why an implementation cannot run here, or why "auto" passes it over, or an empty string."""
    implementations = OPS[case.op].implementations
    if name not in implementations:
        return ""
    arguments = case.arguments(case.draw(Draw(dtype, DEVICE, torch.empty)), DROPOUT if training else 0.0)
    chosen, reasons = choice(case.op, **arguments)
    before = list(implementations).index(name) < list(implementations).index(chosen)
    untried = UNTRIED in reasons
    if before and not untried:
        return reasons
    try:
        choice(case.op, **arguments, backend=name)
    except ValueError as error:
        return str(error)
    return ""


def check(case: Case, way: Way, dtype: torch.dtype, training: bool) -> None:
    """Fail unless `way` computes what the op's reference computes in float32 from the same numbers."""
    inputs = case.draw(Draw(dtype, DEVICE))
    exact = {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}
    reference = case.ways["reference"]
    cotangents = _cotangents(reference.run(exact, 0.0)) if training else None
    truth = step(reference, case, case.differentiable(exact, training), 0.0, cotangents)
    rounded = tuple(c.to(dtype) for c in cotangents) if cotangents else None
    found = step(way, case, case.differentiable(way.lay_out(inputs), training), 0.0, rounded)
    for what, tolerance, actual, expected in zip(("output", "gradient"), TOLERANCES[dtype], found, truth, strict=True):
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            error = float((a.detach().float() - e.detach()).norm() / e.detach().norm())
            assert error <= tolerance, f"{what} {i} is off by {error:.1e} (relative RMS), allowed {tolerance:.0e}"


def measure(benchmark: Any, case: Case, name: str, dtype: torch.dtype, direction: str) -> Result:
    """Time one way, and what "auto" chooses alternating with it."""
    training = direction == "training"
    drawn = [case.draw(Draw(dtype, DEVICE))]
    # Its results tell how much a call moves, and so how many sets of inputs exceed the cache.
    outputs, _ = step(case.ways["reference"], case, drawn[0], 0.0, None)
    moved = case.bytes_moved(drawn[0], outputs, training)
    sets = min(LARGEST_SETS, ceil(2 * _cache_bytes() / moved))
    drawn += [case.draw(Draw(dtype, DEVICE)) for _ in range(sets - 1)]

    own_name = choice(case.op, **case.arguments(drawn[0], DROPOUT if training else 0.0)).implementation
    call = caller(case, case.ways[name], drawn, training)
    own_call = call if name == own_name else caller(case, case.ways[own_name], drawn, training)
    rounds = clock.prepare(call) if own_call is call else clock.prepare(own_call, call)
    own_seconds: list[float] = []

    def before_a_round() -> None:
        if own_call is not call:
            clock.hold()
            start = clock()
            one_round(own_call)
            own_seconds.append(clock() - start)  # type: ignore[operator]
        clock.hold()

    def one_round(call: Callable[[], object]) -> None:
        for _ in range(clock.calls):
            call()

    benchmark.pedantic(one_round, (call,), setup=before_a_round, rounds=rounds)
    seconds = benchmark.stats.stats.median
    flops = case.flops * (case.training_flops if training else 1)
    speed = (moved / 1e9 if case.unit == "GB/s" else flops / 1e12) / seconds
    return Result(
        op=case.op,
        size=case.size,
        dtype=_name(dtype),
        direction=direction,
        way=name,
        seconds=seconds,
        ratio=seconds / median(own_seconds) if own_call is not call else 1.0,
        speed=speed,
        unit=case.unit,
        share=speed / ceiling(DEVICE, case.unit, dtype),
        bytes=moved,
        flops=flops,
        host_was_late=clock.host_was_late,
    )


def caller(case: Case, way: Way, drawn: list[Inputs], training: bool) -> Callable[[], object]:
    """Return a function that runs `way` on the next of the sets of inputs."""
    sets = [case.differentiable(way.lay_out(inputs), training) for inputs in drawn]
    p = DROPOUT if training else 0.0
    # In the memory order of this way's own outputs, as the next layer of a model would give them.
    cotangents = [_cotangents(way.run(inputs, p)) if training else None for inputs in sets]
    count = 0

    def call() -> None:
        nonlocal count
        step(way, case, sets[count % len(sets)], p, cotangents[count % len(sets)])
        count += 1

    return call


def _cotangents(outputs: Outputs) -> Outputs:
    return tuple(torch.randn_like(t) for t in outputs)


def _cache_bytes() -> int:
    return int(torch.cuda.get_device_properties(DEVICE).L2_cache_size) if DEVICE == "cuda" else CPU_CACHE


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
