"""Markdown tables whose columns are aligned, so that they read well in a terminal, too; and numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10


def three_digits(value: float) -> str:
    """Return a number above 0 with at least three digits that count."""
    return f"{value:,.{max(0, 2 - floor(log10(value)))}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table; all columns but the first `left` are aligned to the right."""
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pads = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(pads)} |"

    rule = "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return [line(header), f"|{rule}|", *map(line, rows)]
