"""What a run measured: rows, the file in which runs stand one below the other, and the table of a run."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench import environment, markdown
from bench.clock import interquartile_range, ratios
from bench.markdown import three_digits
from glyphcrm.errors import UserError

DEFAULT_FILE = environment.ROOT / "bench" / "history.jsonl"
PACKAGES = ("torch", "transformers", "triton", "glyphcrm")
KINDS = ("training", "inference", "hanglyph", "memory", "data", "start-up")  # the order of the table
RATE = "characters/s"


@dataclass(frozen=True)
class Row:
    """One comparison; its fields are those of the file."""

    kind: str  # one of KINDS
    what: str
    peer: str  # "" if there is none
    # Median over the rounds: of speeds (the peer's seconds / GlyphCRM's) where the target is a lower bound, of costs
    # (GlyphCRM's / the peer's) where it is an upper one; without a peer, `unit` a core.
    ratio: float
    spread: float  # interquartile range of the rounds' ratios
    target: float
    at_least: bool
    own: float  # medians, in seconds, or bytes for memory
    peer_own: float | None
    unit: str  # of the ratio, "" or RATE
    rounds: int
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the target is."""
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def amount(self, value: float) -> str:
        """Return bytes or seconds of this row for people."""
        if self.kind == "memory":
            return f"{value / 2**20:,.0f} MiB"
        return f"{three_digits(value)} s" if value >= 1 else f"{three_digits(1e3 * value)} ms"

    def number(self, value: float) -> str:
        """Return a ratio of this row for people."""
        return f"{value / 1e3:,.0f} k" if self.unit == RATE else f"{value:.2f}"

    @property
    def shown_ratio(self) -> str:
        return f"{self.number(self.ratio)} ± {self.number(self.spread)}"


def row(
    kind: str,
    what: str,
    peer: str,
    own: Sequence[float],
    peer_own: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Row:
    """Make the row of a comparison from the seconds of its rounds; give one of the two targets."""
    target = at_most if at_least is None else at_least
    assert target is not None
    found = ratios(own, peer_own) if at_least is None else ratios(peer_own, own)
    spread, faster = interquartile_range(found), at_least is not None
    medians = median(own), median(peer_own)
    return Row(kind, what, peer, median(found), spread, target, faster, *medians, "", len(found), note)


@dataclass(frozen=True)
class Run:
    """A run of the suite; its fields are those of a line of the file."""

    date: str  # ISO 8601, UTC
    commit: str  # git's, or "unknown"
    machine: dict[str, Any]
    versions: dict[str, str]
    preset: str
    text: str  # what was read, by names of files
    rows: list[Row] = field(default_factory=list)


def run_of_today(preset: str, text: str, rows: Iterable[Row]) -> Run:
    """Return the record of this process's measurements, rows in the order of the table."""
    return Run(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=environment.first_line("git", "rev-parse", "HEAD"),
        machine=environment.machine(),
        versions={**environment.versions(PACKAGES, absent="-"), "python": platform.python_version()},
        preset=preset,
        text=text,
        rows=sorted(rows, key=lambda row: KINDS.index(row.kind)),
    )


def append(run: Run, path: Path) -> None:
    """Add a line to the file, which is made if it is not there."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(run), ensure_ascii=False) + "\n")


def read(path: Path) -> list[Run]:
    """Return the runs of a file, oldest first, none if it is not there; raise `UserError` if a line is no run."""
    if not path.exists():
        return []
    runs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            kept = {of.name: record[of.name] for of in fields(Run)}  # early runs have curves as well
            runs.append(Run(**kept | {"rows": [Row(**r) for r in kept["rows"]]}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}:{number}: no record of a throughput run ({error}); give another --throughput-history"
            ) from error
    return runs


def before(run: Run, runs: Sequence[Run]) -> Run | None:
    """Return the last of some earlier runs that has rows and is of the same sizes, text and machine, or None."""
    alike = (old for old in runs[::-1] if (old.preset, old.text, old.machine) == (run.preset, run.text, run.machine))
    return next((old for old in alike if old.rows), None)


def table(run: Run, before: Run | None = None) -> list[str]:
    """Return a run as Markdown, without rows the environment alone; the ratios of a run `before` get a column."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    last = f"* {run.preset}; {run.text}; commit {run.commit[:12]}, {run.date}; {versions}; "
    last += f"{run.machine['cpu']}, threads: {run.machine['threads']}"
    if not run.rows:
        return [last]
    header = ["what", "peer", "ratio ± spread", "target", "", "GlyphCRM", "peer's", "rounds"]
    rows = [
        [
            r.what,
            r.peer or "–",
            f"{r.shown_ratio} {r.unit}".rstrip(),
            f"{'≥' if r.at_least else '≤'} {r.number(r.target)}",
            "reached" if r.reached else "missed",
            r.amount(r.own),
            "–" if r.peer_own is None else r.amount(r.peer_own),
            str(r.rounds),
        ]
        for r in run.rows
    ]
    if before is not None:
        header.append(f"{before.date[:10]}, {before.commit[:8]}")
        earlier = {r.what: r.shown_ratio for r in before.rows}
        rows = [[*cells, earlier.get(cells[0], "–")] for cells in rows]
    notes = [f"* {r.what}: {r.note}" for r in run.rows if r.note]
    return [*markdown.table(header, rows, left=2), "", *notes, last]
