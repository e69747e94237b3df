"""Runs that are killed again and again, at random moments and when certain files appear, and go on each time."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

from tests.robustness.processes import Run, warm_up

LIVES = 5  # kills of a run before it may end
CLOCK = ("seconds", "tokens_per_second", "run_dir", "kept_model")  # what need not be the same again


@dataclass(frozen=True)
class Setup:
    """A training command without its ``--output-dir``, and the files that it is killed at (globs in the run)."""

    command: list[str]
    moments: tuple[str, ...]
    ranks: int = 1

    def start(self, run: Path) -> Run:
        """Start it, or start it again, in the directory `run`."""
        return Run([*self.command, "--output-dir", str(run)], run.with_suffix(".log"), self.ranks)


@dataclass
class Report:
    """What a setup went through. `problems` must be empty."""

    random_kills: int = 0
    kills_at_files: int = 0
    starts: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How often a run was killed."""
        return self.random_kills + self.kills_at_files


def try_out(setup: Setup, kills: int, seed: int, directory: Path) -> Report:
    """Kill runs of `setup` `kills` times or a few times more; compare each with one that nobody disturbs.

    Half of the kills, or as many as there are, come when a file of `setup.moments` appears; the others at moments
    that are uniform over the time of the undisturbed run.
    """
    rng, report = random.Random(seed), Report()
    warm_up()
    began = time.monotonic()
    undisturbed = setup.start(directory / "undisturbed")
    assert undisturbed.wait() and set(undisturbed.exit_codes) == {0}, undisturbed.said()[-2000:]
    duration = time.monotonic() - began
    wanted = outcome(directory / "undisturbed")
    assert wanted
    moments = list(setup.moments)
    rng.shuffle(moments)
    moments = moments[: kills // 2]
    number = 0
    while report.kills < kills and not report.problems:
        number += 1
        run = directory / f"run-{number}"
        lived = _live(setup, run, rng, duration, moments, report, kills)
        if lived is not None:
            report.problems.append(f"run {number}: {lived}")
    return report


def _live(
    setup: Setup, run: Path, rng: random.Random, duration: float, moments: list[str], report: Report, kills: int
) -> str | None:
    """Take a run through its kills to its end; return what is wrong with it."""
    killed: list[str] = []
    while True:
        process = setup.start(run)
        report.starts += 1
        at_file = bool(moments) and rng.random() < 0.5
        if len(killed) == LIVES or report.kills >= kills:
            why, when = "its end", _never
        elif at_file:
            why = moments.pop()
            when = appears(run, why)
        else:
            seconds = rng.uniform(0, duration)
            why, when = f"{seconds:.2f} s", _after(seconds)
        if not process.wait(when):
            process.kill()
            return f"hangs after kills at {killed}"
        if not process.ended:
            process.kill()
            killed.append(why)
            report.kills_at_files += at_file
            report.random_kills += not at_file
            continue
        if set(process.exit_codes) != {0} or "Traceback" in process.said():
            return f"ended with {process.exit_codes} after kills at {killed}: {process.said()[-1500:]}"
        break
    found, wanted = outcome(run), outcome(run.parent / "undisturbed")
    if different := sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name)):
        return f"{different} differ after kills at {killed}"
    if left := [str(path.relative_to(run)) for path in run.rglob("*") if path.name.startswith(".")]:
        return f"{left} left after kills at {killed}"
    return None


def _never() -> bool:
    return False


def appears(run: Path, pattern: str) -> Callable[[], bool]:
    """Return a function that tells whether a file of this pattern is in the run's directory."""
    return lambda: bool(glob(pattern, root_dir=run))  # unlike Path.glob it does not mind what goes meanwhile


def _after(seconds: float) -> Callable[[], bool]:
    moment = time.monotonic() + seconds
    return lambda: time.monotonic() >= moment


def outcome(run: Path) -> dict[str, Any]:
    """Return what a run has come to: the bytes of weights and predictions, and all numbers but those of the clock."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.name in ("model.safetensors", "predictions.jsonl"):
            found[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name in ("result.json", "summary.json"):
            found[name] = _timeless(json.loads(path.read_text()))
    return found


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in CLOCK}
