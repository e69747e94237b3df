"""A run as a Markdown table, aligned, so that it reads well in a terminal, too."""

from __future__ import annotations

from math import floor, log10

from bench.throughput.history import Run
from bench.throughput.rows import RATE, Row

LEFT = 2  # columns of text; numbers are aligned to the right


def table(run: Run, before: Run | None = None) -> list[str]:
    """Return the lines; `before` is an earlier run, whose ratios get a column. No rows: the environment alone."""
    if not run.rows:
        return [_environment(run)]
    earlier = {row.what: row for row in before.rows} if before is not None else {}
    header = ["what", "peer", "ratio ± spread", "target", "", "GlyphCRM", "peer's", "rounds"]
    rows = [
        [
            row.what,
            row.peer or "–",
            f"{_number(row.ratio, row.unit)} ± {_number(row.spread, row.unit)}{row.unit and ' ' + row.unit}",
            f"{'≥' if row.at_least else '≤'} {_number(row.target, row.unit)}",
            "reached" if row.reached else "missed",
            _amount(row, row.own),
            "–" if row.peer_own is None else _amount(row, row.peer_own),
            str(row.rounds),
        ]
        for row in run.rows
    ]
    if before is not None:
        header.append(f"{before.date[:10]}, {before.commit[:8]}")
        for cells, row in zip(rows, run.rows, strict=True):
            old = earlier.get(row.what)
            cells.append("–" if old is None else f"{_number(old.ratio, old.unit)} ± {_number(old.spread, old.unit)}")
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        pads = (c.ljust(w) if i < LEFT else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(pads)} |"

    rule = "|".join("-" * (w + 2) if i < LEFT else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    notes = [f"* {row.what}: {row.note}" for row in run.rows if row.note]
    return [line(header), f"|{rule}|", *map(line, rows), "", *notes, _environment(run)]


def _environment(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return (
        f"* {run.preset}; {run.text}; commit {run.commit[:12]}, {run.date}; {versions}; "
        f"{run.machine['cpu']}, threads: {run.machine['threads']}"
    )


def _number(value: float, unit: str) -> str:
    if unit != RATE:
        return f"{value:.2f}"
    return f"{value / 1e3:,.0f} k"


def _amount(row: Row, value: float) -> str:
    if row.kind == "memory":
        return f"{value / 2**20:,.0f} MiB"
    scale, unit = (1, "s") if value >= 1 else (1e3, "ms")
    value *= scale
    digits = max(0, 2 - floor(log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f} {unit}"
