"""The results of the kernel benchmarks, in memory, in pytest-benchmark's JSON, and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from bench import markdown


class Result(NamedTuple):
    """One way of computing one case; these are the fields of a benchmark's "extra_info"."""

    op: str
    size: str
    dtype: str
    direction: str
    way: str
    seconds: float  # median of a call
    ratio: float  # seconds, as a multiple of those of the group's first way, measured alternately
    speed: float
    unit: str  # GB/s of the least traffic, or TFLOP/s of the least arithmetic
    share: float  # of the ceiling that was measured on this machine
    bytes: int
    flops: float
    host_was_late: bool  # the GPU had to wait for launches, so `seconds` is not all its own

    @property
    def group(self) -> tuple[str, str, str, str]:
        return self.op, self.size, self.dtype, self.direction

    @property
    def shown_speed(self) -> str:
        """The speed for people, in GFLOP/s where it is below a TFLOP/s."""
        if self.unit == "TFLOP/s" and self.speed < 1:
            return f"{markdown.three_digits(1e3 * self.speed)} GFLOP/s"
        return f"{markdown.three_digits(self.speed)} {self.unit}"


RESULTS = pytest.StashKey[list[Result]]()


def read(path: Path) -> list[Result]:
    """Return the kernel results in a file that `--benchmark-json` wrote."""
    benchmarks = json.loads(path.read_text("utf-8"))["benchmarks"]
    found = [b["extra_info"] for b in benchmarks]
    return [Result(**info) for info in found if info.keys() == set(Result._fields)]


def table(results: Iterable[Result]) -> list[str]:
    """Return Markdown lines, aligned, so that they read well in a terminal, too: a block a group."""
    header = ("case", "way", "median", "x first", "speed", "of ceiling")
    rows: list[tuple[str, ...]] = []
    last: tuple[str, ...] = ()
    late = False
    for r in results:
        case = f"{r.op} {r.size}, {r.dtype}, {r.direction}" if r.group != last else ""
        last, late = r.group, late or r.host_was_late
        mark = "*" if r.host_was_late else ""
        rows.append((case, r.way, _time(r.seconds) + mark, f"{r.ratio:.2f}", r.shown_speed, f"{r.share:.0%}"))
    note = ["", "\\* the GPU waited for the host, so this is not the kernels' own time"] if late else []
    return [*markdown.table(header, rows, left=2), *note]


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:,.1f} µs"
    return f"{seconds * 1e3:,.2f} ms"
