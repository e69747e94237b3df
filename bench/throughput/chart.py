"""Draws what each idea brings: `python -m bench.throughput.chart HISTORY.jsonl -o chart.png`.

It takes the last run of the file that has curves (`--throughput-batches`): what a real token of a training step costs,
by batch size, with one idea after the other switched on, and BERT's. It also prints the table of the last run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.throughput.history import DEFAULT_FILE, Curve, Run, before, read
from bench.throughput.table import table

PEER = "BERT"
# Colour-blind safe (Okabe and Ito); the last curve of GlyphCRM is the product as it is.
COLOURS = ("#999999", "#cc79a7", "#e69f00", "#009e73", "#56b4e9", "#0072b2")
PRODUCT_COLOUR = "#d55e00"
PEER_COLOUR = "#000000"
MARKERS = "XsD^v<o"
LEAST_GAP = 0.055  # between two labels, as a share of the height


def draw_chart(run: Run, path: Path) -> None:
    """Draw the curves of a run into a PNG."""
    # Without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = sorted({size for curve in run.curves for size in curve.batch_sizes})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    values = [value for curve in run.curves for value in curve.milliseconds]
    axes.set_ylim(min(values) / 1.4, max(values) * 1.4)
    # The labels stand to the right of the last point, outside of the axes.
    axes.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
    own = [curve for curve in run.curves if curve.name != PEER]
    colours = dict(zip((curve.name for curve in own), COLOURS, strict=False))
    colours |= {own[-1].name: PRODUCT_COLOUR, PEER: PEER_COLOUR}
    for i, curve in enumerate(run.curves):
        _draw_curve(axes, curve, sizes, colours[curve.name], "o" if curve.name == PEER else MARKERS[i % len(MARKERS)])
    _label(axes, run.curves, colours)
    axes.set_xticks(sizes, [f"{size}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(_x_label(run.curves[0], sizes))
    axes.set_ylabel("milliseconds a real token")
    axes.grid(axis="y", which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Training step, {run.preset}: one idea after the other", loc="left", fontweight="bold", pad=22)
    axes.text(0, 1.02, _subtitle(run), transform=axes.transAxes, fontsize=8, color="#555555")
    figure.savefig(path, dpi=110)


def _draw_curve(axes: Any, curve: Curve, sizes: Sequence[int], colour: str, marker: str) -> None:
    style = {"color": colour, "linewidth": 2 if colour in (PRODUCT_COLOUR, PEER_COLOUR) else 1.4}
    if curve.extrapolated:
        axes.plot([sizes[0], sizes[-1]], [curve.milliseconds[0]] * 2, linestyle=":", **style)
    line = "--" if curve.name == PEER else "-"
    axes.plot(curve.batch_sizes, curve.milliseconds, linestyle=line, marker=marker, markersize=5, **style)


def _label(axes: Any, curves: Sequence[Curve], colours: dict[str, str]) -> None:
    """Write each curve's name and last value to the right of its end, moved apart where they would overlap."""
    to_share = axes.transData + axes.transAxes.inverted()
    ends = [float(to_share.transform((1, curve.milliseconds[-1]))[1]) for curve in curves]
    # From the bottom; of equal ones the idea that came later is lower.
    order = sorted(range(len(curves)), key=lambda i: (round(ends[i], 2), -i))
    for place, i in zip(_apart([ends[i] for i in order]), order, strict=True):
        curve = curves[i]
        measured_at = f", measured at {curve.batch_sizes[0]}" if curve.extrapolated else ""
        axes.annotate(
            f"{curve.name}: {curve.milliseconds[-1]:#.3g}{measured_at}",
            xy=(1.0, ends[i]),
            xytext=(1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colours[curve.name],
            arrowprops={
                "arrowstyle": "-",
                "color": colours[curve.name],
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _apart(wanted: Sequence[float]) -> list[float]:
    """Return places LEAST_GAP apart or more, in the order of `wanted`; a group that would overlap stays centred."""
    groups: list[list[float]] = []  # of wanted places, each less the gaps below it
    for k, place in enumerate(wanted):
        groups.append([place - k * LEAST_GAP])
        while len(groups) > 1 and mean(groups[-1]) < mean(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    level = [mean(group) for group in groups for _ in group]
    return [place + k * LEAST_GAP for k, place in enumerate(level)]


def _x_label(curve: Curve, sizes: Sequence[int]) -> str:
    label = f"sequences of at most {curve.length} tokens in a step"
    if sizes[-1] > curve.micro_batch:
        label += f" (above {curve.micro_batch}: gradients of micro-batches of {curve.micro_batch} added up)"
    return label


def _subtitle(run: Run) -> str:
    versions = f"torch {run.versions['torch']}, transformers {run.versions['transformers']}"
    machine = f"{run.machine['cpu']}, threads: {run.machine['threads']}"
    return f"{machine}; {versions}; commit {run.commit[:8]}, {run.date[:10]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput.chart", description=__doc__.split("\n")[0])
    parser.add_argument("history", type=Path, nargs="?", default=DEFAULT_FILE, help="what --throughput-history wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("throughput-chart.png"))
    options = parser.parse_args(arguments)
    try:
        runs = read(options.history)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    with_rows = [run for run in runs if run.rows]
    if with_rows:
        print("\n".join(table(with_rows[-1], before(with_rows[-1], with_rows[:-1]))))
    drawn = next((run for run in reversed(runs) if run.curves), None)
    if drawn is None:
        sys.exit(f"error: no run in {options.history} has curves; measure them with --throughput-batches")
    draw_chart(drawn, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
