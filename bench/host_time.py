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
import torch.nn.functional as F
from glyphcrm_kernels._shared import checks, cpu_library, memo, targets
from glyphcrm_kernels._shared.dispatch import nothing
from glyphcrm_kernels._shared.optional_triton import HAS_TRITON, INTERPRETED, triton
from glyphcrm_kernels.registry import OPS
from torch import Tensor

from bench import markdown, peers

CALLS = 50  # a turn; a GPU's queue holds them
P, EPS = 0.1, 1e-12
HOPPER = targets.Target("cuda", 90)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Inputs = dict[str, Tensor]


class Small(NamedTuple):
    """An op at its smallest: tensors by parameter name, its other arguments, and PyTorch's operations for the same."""

    inputs: Inputs
    settings: dict[str, Any]
    pytorch: Callable[[Inputs], Any]

    def leaves(self) -> list[Tensor]:
        return [t for t in self.inputs.values() if t.requires_grad]


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, requires_grad=True)


def _add_norm(rows: int | None) -> Small:
    inputs = {"x": _randn(1, 16), "residual": _randn(1, 16), "weight": _randn(16), "bias": _randn(16)}
    if rows is not None:
        inputs |= {"skip": _randn(rows, 16), "index": torch.zeros(1, dtype=torch.int64, device=DEVICE)}

    def pytorch(given: Inputs) -> Tensor:
        z = F.dropout(given["x"], P) + given["residual"]
        if rows is not None:
            z = z + F.embedding(given["index"], given["skip"])
        return F.layer_norm(z, (16,), given["weight"], given["bias"], EPS)

    return Small(inputs, {"p": P, "eps": EPS, "training": True}, pytorch)


def _glyph_conv(last: bool) -> Small:
    """A 9x9 convolution with one place of output; the `last` of a residual block adds the shortcut and pools."""
    side = 10 if last else 9
    x = torch.randn(2, side, side, 4, device=DEVICE).permute(0, 3, 1, 2).requires_grad_()
    inputs = {"x": x, "weight": _randn(4, 4, 9, 9), "bias": _randn(4)}
    if last:
        inputs["residual"] = torch.randn(2, 2, 2, 4, device=DEVICE).permute(0, 3, 1, 2).requires_grad_()

    def pytorch(given: Inputs) -> Tensor:
        y = F.conv2d(given["x"], given["weight"], given["bias"])
        return F.max_pool2d(F.relu(y + given["residual"]), 2) if last else F.relu(y)

    return Small(inputs, {"relu": True, "pool": last}, pytorch)


def _pictures() -> Inputs:
    return {
        "rows": torch.zeros(2, dtype=torch.int64, device=DEVICE),
        "bitmaps": torch.randint(256, (1, 288), dtype=torch.uint8, device=DEVICE),
        "weight": _randn(4, 3, 3, 3),
        "bias": _randn(4),
        "position_map": torch.randn(2, 48, 48, device=DEVICE),
    }


def _stem(given: Inputs) -> tuple[Tensor, ...]:
    return peers.drawn_stem(torch.channels_last, given, 0.0)


def _glyph_stem() -> Small:
    return Small(_pictures(), {}, _stem)


def _glyph_stem_conv() -> Small:
    def pytorch(given: Inputs) -> tuple[Tensor, Tensor]:
        activation, shortcut = _stem(given)
        return F.relu(F.conv2d(activation, given["conv_weight"], given["conv_bias"])), shortcut

    return Small(_pictures() | {"conv_weight": _randn(4, 4, 9, 9), "conv_bias": _randn(4)}, {}, pytorch)


def _dropout_attention() -> Small:
    inputs = {name: _randn(1, 1, 1, 4) for name in ("query", "key", "value")}

    def pytorch(given: Inputs) -> Tensor:
        return F.scaled_dot_product_attention(*given.values(), dropout_p=P).transpose(1, 2)

    return Small(inputs, {"scaling": 0.5, "p": P}, pytorch)


def _biased_linear() -> Small:
    inputs = {"x": _randn(1, 16), "weight": _randn(16, 16), "bias": _randn(16)}
    return Small(inputs, {}, lambda given: F.linear(*given.values()))


# By op: what is named behind it, and how it is made.
SMALL: dict[str, dict[str, Callable[[], Small]]] = {
    "add_norm": {"2-way": lambda: _add_norm(None), "3-way": lambda: _add_norm(2)},
    "glyph_stem": {"": _glyph_stem},
    "glyph_conv": {"relu": lambda: _glyph_conv(False), "residual, relu, pool": lambda: _glyph_conv(True)},
    "glyph_stem_conv": {"": _glyph_stem_conv},
    "dropout_attention": {"": _dropout_attention},
    "biased_linear": {"": _biased_linear},
}


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


def measure(op: str, case: str, way: str, rounds: int) -> Row:
    """Return the row of a case."""
    small = SMALL[op][case]()
    leaves = small.leaves()

    def ours() -> Any:
        return OPS[op].function(**small.inputs, **small.settings, backend=way)

    def pytorch() -> Any:
        return small.pytorch(small.inputs)

    def trained(forward: Callable[[], Any]) -> Callable[[], Any]:
        outputs = forward()
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        cotangents = [torch.ones_like(t) for t in outputs]
        return lambda: torch.autograd.grad(forward(), leaves, cotangents)

    memo.forget()
    with _nothing_computed(way):
        row = Row(
            f"{op}{', ' if case else ''}{case}: {way}",
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
    parser.add_argument("--rounds", type=int, default=40, help="turns of both sides, %(default)s if not given")
    asked = parser.parse_args()
    if missing := OPS.keys() - SMALL.keys():
        raise LookupError(f"there is no small case of {', '.join(sorted(missing))}; add one to SMALL in {__file__}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [
        measure(op, case, way, asked.rounds)
        for op, cases in SMALL.items()
        for way in ways(op)
        for case in cases
        if all(word in f"{op} {case} {way}" for word in asked.only.split())
    ]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
