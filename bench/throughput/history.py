"""The record of a run, and the file in which runs stand one below the other, a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.throughput import environment
from bench.throughput.rows import KINDS, Row

DEFAULT_FILE = environment.ROOT / "bench" / "history.jsonl"


@dataclass(frozen=True)
class Curve:
    """What a real token costs in a training step: `milliseconds` by `batch_sizes`, in sequences of at most `length`.

    A curve with `extrapolated` was measured at its only batch size; its cost does not depend on it.
    """

    name: str
    length: int
    batch_sizes: list[int]
    milliseconds: list[float]
    micro_batch: int
    extrapolated: bool = False


@dataclass(frozen=True)
class Run:
    """A run of the suite.

    Attributes:
        date: ISO 8601, UTC.
        commit: git's, or "unknown".
        machine, versions: see `environment`.
        preset: size of the models.
        text: what was read, by names of files.
        rows, curves: what was measured; either may be empty.
    """

    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    preset: str
    text: str
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)

    def comparable(self, other: Run) -> bool:
        """Whether both are of the same sizes, text and machine."""
        return (self.preset, self.text, self.machine) == (other.preset, other.text, other.machine)


def run_of_today(preset: str, text: str, rows: Iterable[Row], curves: Iterable[Curve]) -> Run:
    """Return the record of this process's measurements, rows in the order of the table."""
    return Run(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=environment.commit(),
        machine=environment.machine(),
        versions=environment.versions(),
        preset=preset,
        text=text,
        rows=sorted(rows, key=lambda row: KINDS.index(row.kind)),
        curves=list(curves),
    )


def append(run: Run, path: Path) -> None:
    """Add a line to the file, which is made if it is not there."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(run), ensure_ascii=False) + "\n")


def read(path: Path) -> list[Run]:
    """Return the runs of a file, oldest first; none if it is not there.

    Raises `ValueError`, which names file and line, where a line is no record of a run.
    """
    if not path.exists():
        return []
    runs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            rows, curves = record.pop("rows"), record.pop("curves")
            runs.append(Run(**record, rows=[Row(**r) for r in rows], curves=[Curve(**c) for c in curves]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: no record of a throughput run ({error})") from error
    return runs


def before(run: Run, runs: Sequence[Run]) -> Run | None:
    """Return the last of some earlier runs, oldest first, that is comparable and has rows, or None."""
    return next((old for old in reversed(runs) if old.rows and run.comparable(old)), None)
