"""Microseconds that the host spends on one call of each op, beside PyTorch's own operations for the same.

    python -m bench.host_time [--only WORDS] [--rounds N]

On a GPU the calls are real, and nobody waits for them. Without one Triton gets a driver for a GPU that is not there:
it compiles, chooses and starts for a Hopper, and the start itself does nothing; the C functions are replaced by nothing
as well. The tensors are as small as the ops allow, so PyTorch's time is its host's, too, but for a stem's one picture.
Both sides take turns; times are medians of the process's own time, or of the wall clock's on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from glyphcrm_kernels._shared import checks, cpu_library, memo, targets
from glyphcrm_kernels._shared.dispatch import nothing
from glyphcrm_kernels._shared.optional_triton import HAS_TRITON, INTERPRETED, triton
from glyphcrm_kernels.registry import OPS
from torch import Tensor

from bench import markdown
from bench.cases import DROPOUT, HOST, Case, Draw, all_cases
from bench.peers import Way
from glyphcrm.cli.arguments import whole_number

CALLS = 50  # a turn; a GPU's queue holds them
HOPPER = targets.Target("cuda", 90)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Row(NamedTuple):
    """Medians in microseconds: ours and PyTorch's, forward and with the backward; and of the turns' ratios."""

    name: str
    forward: tuple[float, float, float]
    training: tuple[float, float, float]


@contextlib.contextmanager
def no_gpu(take: Callable[..., object]) -> Iterator[None]:
    """Let Triton start kernels on a Hopper that is not there: `take` is called with what the launcher would be given.

    Only its driver is replaced; kernels are compiled. What Triton looks at is in the tensors, which may be on a CPU.
    """
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232_448, "multiprocessor_count": 132},
        load_binary=lambda *binary: (1, 1, 32, 0, 1024),  # module, function, registers, spills, threads
        unload_module=lambda module: None,
    )
    driver = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: triton.backends.compiler.GPUTarget("cuda", 90, 32),
        utils=utils,
        launcher_cls=lambda source, metadata: take,
    )
    config = triton.runtime.driver
    names = [name for name in ("_active", "active") if name in vars(config)]
    before = {name: vars(config)[name] for name in names}
    config.set_active(driver)
    try:
        with targets.pretend(HOPPER):
            yield
    finally:
        vars(config).update(before)


@contextlib.contextmanager
def willing(name: str) -> Iterator[None]:
    """Let the implementations of that name take whatever they are given."""
    with contextlib.ExitStack() as stack:
        for ways in (op.implementations for op in OPS.values() if name in op.implementations):
            taking = {name: ways[name]._replace(obstacle=lambda *_: "")}
            stack.enter_context(mock.patch.dict(ways, taking))
        yield


@contextlib.contextmanager
def _nothing_computed(name: str) -> Iterator[None]:
    """Replace what an implementation starts by nothing."""
    found = cpu_library._function
    function = functools.lru_cache(lambda *asked: (lambda *values: 0, *found(*asked)[1:]))
    with contextlib.ExitStack() as stack:
        if name == "cpu":
            stack.enter_context(mock.patch.object(cpu_library, "_function", function))
        elif DEVICE == "cpu":
            stack.enter_context(no_gpu(lambda *given: None))
            stack.enter_context(willing(name))
            # The tensors are on a CPU, where indices are looked at; on a GPU they are not, unless that is asked for.
            stack.enter_context(mock.patch.object(checks, "_look", nothing))  # a mock would take time
        yield


def ways(op: str) -> list[str]:
    """Return the implementations whose host time can be measured here; Hopper's kernels alone need their GPU."""
    found = []
    if "triton" in OPS[op].implementations and HAS_TRITON and not INTERPRETED:
        found.append("triton")
    if DEVICE == "cpu" and "cpu" in OPS[op].implementations and cpu_library.load() is not None:
        found.append("cpu")
    return found


def microseconds(call: Callable[[], object]) -> float:
    """Return the host's time for one of some calls in a row."""
    clock = time.process_time if DEVICE == "cpu" else time.perf_counter
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(CALLS):
        call()
    return (clock() - start) / CALLS * 1e6


def compare(ours: Callable[[], object], pytorch: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Return both medians and that of the ratios, each way by turns."""
    for call in (ours, pytorch):
        for _ in range(10):
            call()
    pairs = []
    for turn in range(rounds):
        first, second = (ours, pytorch) if turn % 2 else (pytorch, ours)
        times = {first: microseconds(first), second: microseconds(second)}
        pairs.append((times[ours], times[pytorch]))
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return mine, theirs, statistics.median(a / b for a, b in pairs)


def measure(case: Case, name: str, rounds: int) -> Row:
    """Return the row of a case and of the implementation `name`, beside the case's first peer, else the reference."""
    peer = next(iter(case.peers.values()), Way(lambda inputs, p: OPS[case.op].reference(**inputs)))
    inputs = case.differentiable(peer.lay_out(case.draw(Draw(torch.float32, DEVICE))), True)
    arguments, leaves = case.arguments(inputs, DROPOUT), case.leaves(inputs)

    def ours() -> Any:
        return OPS[case.op].function(**arguments, backend=name)

    def pytorch() -> Any:
        return peer.run(inputs, DROPOUT)

    def trained(forward: Callable[[], Any]) -> Callable[[], Any]:
        outputs = forward()
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        cotangents = [torch.ones_like(t) for t in outputs]
        return lambda: torch.autograd.grad(forward(), leaves, cotangents)

    memo.forget()
    with _nothing_computed(name):
        row = Row(
            f"{case.op} {case.size}: {name}",
            compare(ours, pytorch, rounds),
            compare(trained(ours), trained(pytorch), rounds),
        )
    memo.forget()
    return row


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table."""
    header = ["microseconds a call", "forward", "PyTorch", "ratio", "with backward", "PyTorch", "ratio"]
    cells = [[row.name, *(text for part in (row.forward, row.training) for text in _texts(*part))] for row in rows]
    return markdown.table(header, cells)


def _texts(ours: float, pytorch: float, ratio: float) -> list[str]:
    return [f"{ours:.0f}", f"{pytorch:.0f}", f"{ratio:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="measure the rows that have all these words in their name")
    parser.add_argument(
        "--rounds", type=whole_number(1), default=40, help="turns of both sides, %(default)s if not given"
    )
    asked = parser.parse_args()
    named = {f"{case.op} {case.size} {way}": (case, way) for case in all_cases(HOST, DEVICE) for way in ways(case.op)}
    chosen = [named[name] for name in named if all(word in name for word in asked.only.split())]
    if named and not chosen:
        parser.error(f"argument --only: no row has all words of {asked.only!r}; rows are like {next(iter(named))!r}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("\n".join(table([measure(case, way, asked.rounds) for case, way in chosen])))


if __name__ == "__main__":
    main()
