"""Draws the results of the kernel benchmarks: `python -m bench.chart BENCH.json -o chart.png`.

A row of panels for each operation, a column for each dtype. A bar is the speed of one way of computing a case
as a multiple of the speed of the group's first way; its label adds the speed itself and the share
of what the machine can do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.results import Result, read

BAR_INCHES = 0.21
PANEL_INCHES = 9.5
# Colour-blind safe (Okabe and Ito).
FIRST_COLOUR = "#d55e00"  # this project's own way
COLOURS = ("#56b4e9", "#009e73", "#cc79a7", "#e69f00", "#0072b2", "#999999", "#f0e442")


def draw_chart(results: Sequence[Result], title: str, path: Path) -> None:
    """Draw `results` into a PNG."""
    # Without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ops = list(dict.fromkeys(r.op for r in results))
    dtypes = list(dict.fromkeys(r.dtype for r in results))
    slots = {op: max(_slots([r for r in results if (r.op, r.dtype) == (op, dtype)]) for dtype in dtypes) for op in ops}
    figure = Figure(
        figsize=(PANEL_INCHES * len(dtypes), BAR_INCHES * sum(slots.values()) + 1.1 * len(ops) + 0.6),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    peers = list(dict.fromkeys(r.way for r in results if not _is_first(r, results)))
    colours = {way: COLOURS[i % len(COLOURS)] for i, way in enumerate(peers)}
    panels = figure.subplots(len(ops), len(dtypes), squeeze=False, height_ratios=[slots[op] for op in ops])
    for row, op in zip(panels, ops, strict=True):
        for axes, dtype in zip(row, dtypes, strict=True):
            _draw_panel(axes, [r for r in results if (r.op, r.dtype) == (op, dtype)], slots[op], colours)
            axes.set_title(f"{op}, {dtype}", loc="left", fontsize=11, fontweight="bold")
    figure.savefig(path, dpi=110)


def _is_first(result: Result, results: Sequence[Result]) -> bool:
    return result is next(r for r in results if r.group == result.group)


def _slots(results: Sequence[Result]) -> int:
    """Return how many lines a panel needs: one for a bar, two for the name of a group and the gap."""
    return len(results) + 2 * len({r.group for r in results})


def _draw_panel(axes: Any, results: Sequence[Result], slots: int, colours: dict[str, str]) -> None:
    longest = max((1 / r.ratio for r in results), default=1.0)
    y = 0
    names = []
    for _, group in groupby(results, key=lambda r: r.group):
        members = list(group)
        first = members[0]
        axes.text(0.005 * longest, y, f"{first.size}, {first.direction}", fontsize=8.5, fontweight="bold", va="center")
        for i, r in enumerate(members):
            y += 1
            names.append((y, r.way))
            axes.barh(y, 1 / r.ratio, height=0.8, color=colours[r.way] if i else FIRST_COLOUR)
            label = f"{1 / r.ratio:.2f}x   {r.shown_speed}, {r.share:.0%}{' *' if r.host_was_late else ''}"
            text = axes.text(1 / r.ratio + 0.01 * longest, y, label, fontsize=7.5, va="center")
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # over the line at 1
        y += 2
    axes.axvline(1, color="#555555", linewidth=0.8, linestyle=":")
    axes.set_yticks([at for at, _ in names], [name for _, name in names], fontsize=8)
    axes.set_ylim(slots - 0.5, -1)
    axes.set_xlim(0, 1.42 * longest)  # room for the labels
    late = "; *: the GPU waited for the host" if any(r.host_was_late for r in results) else ""
    axes.set_xlabel(
        f"speed, first way of each group = 1; label: speed and share of the measured ceiling{late}", fontsize=8
    )
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _title(path: Path) -> str:
    machine = json.loads(path.read_text("utf-8"))["machine_info"]
    device = machine.get("gpu") or f"{machine['cpu'].get('brand_raw', 'CPU')}, {machine['threads']} threads"
    return f"{device}: torch {machine['torch']}, triton {machine['triton']}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chart", description=__doc__.split("\n")[0])
    parser.add_argument("json", type=Path, help="what `pytest bench/ --benchmark --benchmark-json` wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("chart.png"))
    options = parser.parse_args(arguments)
    results = read(options.json)
    if not results:
        sys.exit(f"error: {options.json} has no results of bench/test_kernels.py")
    draw_chart(results, _title(options.json), options.output)
    print(options.output)


if __name__ == "__main__":
    main()
