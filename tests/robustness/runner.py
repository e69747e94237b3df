"""Runs cases of a surface in a process with limits, and counts what became of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0  # of the clock, as others may have the processor; what takes so long hangs
BYTES = 4 << 30  # of address space, over what the process has before
BATCH = 100  # cases a process, so that what one leaves in memory is not the next one's


@dataclass(frozen=True)
class Case:
    """One malformed input: `call` gives it to the surface and returns an exit code."""

    call: Callable[[], int]
    about: str
    out: Path  # where the surface would write; nothing may be left there, or beside it, by a refusal


Surface = Callable[[random.Random, Path], Case]


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    surface: str
    seed: int
    kind: str  # accepted, refused; faults: traceback, unclear, left, hang, killed
    detail: str = ""
    seconds: float = 0.0
    peak: int = 0  # MiB of memory that the process, and those before it, have had at most


def refusable(call: Callable[[], None]) -> Callable[[], int]:
    """Return a library call as a command: 0, or 2 with the message of the `ValueError` that it refuses with."""

    def command() -> int:
        try:
            call()
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return command


def run(name: str, surface: Surface, count: int, scratch: Path) -> list[Outcome]:
    """Run `count` cases, of the seeds 0, 1, 2, ...; the same ones every time."""
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        outcomes += _batch(name, surface, range(len(outcomes), min(count, len(outcomes) + BATCH)), scratch)
    return outcomes


def faults(outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes that must not be."""
    return [outcome for outcome in outcomes if outcome.kind not in ("accepted", "refused")]


def totals(outcomes: list[Outcome]) -> str:
    """Return the numbers of a surface in one line."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    return (
        f"{outcomes[0].surface}: {len(outcomes)} inputs, "
        + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        + (f"; slowest {max(o.seconds for o in outcomes):.1f} s, most memory {max(o.peak for o in outcomes)} MiB")
    )


def _batch(name: str, surface: Surface, seeds: range, scratch: Path) -> Iterator[Outcome]:
    """Yield outcomes until the process has run them all, or is gone."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _limit()
        with open(writing, "w", buffering=1) as pipe:
            for seed in seeds:
                began = time.monotonic()
                kind, detail = _outcome(name, surface, seed, scratch)
                peak = max(resource.getrusage(of).ru_maxrss for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
                print(json.dumps([kind, detail, time.monotonic() - began, peak >> 10]), file=pipe)
        os._exit(0)
    os.close(writing)
    seed = seeds.start
    with open(reading) as pipe:
        while seed < seeds.stop:
            ready, _, _ = select.select([pipe], [], [], SECONDS)
            line = pipe.readline() if ready else None
            if not line:
                os.kill(child, signal.SIGKILL)
                yield Outcome(name, seed, "killed" if line == "" else "hang")
                break
            yield Outcome(name, seed, *json.loads(line))
            seed += 1
    os.waitpid(child, 0)


def _limit() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(name: str, surface: Surface, seed: int, scratch: Path) -> tuple[str, str]:
    directory = scratch / f"{name}-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    case = surface(random.Random(f"{name} {seed}"), directory)
    before = _beside(case.out)
    said = io.StringIO()
    began = time.monotonic()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = case.call()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        return "traceback", f"{case.about}: {traceback.format_exc()[-1500:]}"
    errors = [line for line in said.getvalue().replace("\r", "\n").split("\n") if "error: " in line]
    left = sorted(_beside(case.out) - before)
    shutil.rmtree(directory)
    if time.monotonic() - began > SECONDS:
        return "hang", f"{case.about}: {time.monotonic() - began:.0f} s"
    if code == 0:
        return "accepted", case.about
    if code != 2 or len(errors) != 1 or not errors[0].isprintable():
        return "unclear", f"{case.about}: {code} {said.getvalue()[-500:]!r}"
    return ("left", f"{case.about}: {left}") if left else ("refused", errors[0])


def _beside(out: Path) -> set[str]:
    """Return what bears the name of `out`, or began as a temporary file for it."""
    if not out.parent.exists():
        return set()
    return {path.name for path in out.parent.iterdir() if path.name == out.name or path.name.startswith(".")}
