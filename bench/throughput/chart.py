"""Draws what each idea brings: `python -m bench.throughput.chart HISTORY.jsonl -o chart.png`.

It takes the last run of the file that has curves (`--throughput-batches`): what a real token of a training step costs,
by batch size, with one idea after the other switched on, and BERT's. It also prints the table of the last run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.throughput.history import DEFAULT_FILE, Run, before, read, table

PEER = "BERT"
# Colour-blind safe (Okabe and Ito); the last curve of GlyphCRM is the product as it is.
COLOURS = ("#999999", "#cc79a7", "#e69f00", "#009e73", "#56b4e9", "#0072b2")
PRODUCT_COLOUR, PEER_COLOUR = "#d55e00", "#000000"
MARKERS = "XsD^v<o"


def draw_chart(run: Run, path: Path) -> None:
    """Draw the curves of a run into a PNG; the legend has their last values, the largest first, as the curves end."""
    # Without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({size for curve in run.curves for size in curve.batch_sizes})
    *rest, product = [curve.name for curve in run.curves if curve.name != PEER]
    colours = {**dict(zip(rest, COLOURS, strict=False)), product: PRODUCT_COLOUR, PEER: PEER_COLOUR}
    lines = []
    for curve, marker in zip(run.curves, MARKERS + "o", strict=False):
        colour, line = colours[curve.name], "--" if curve.name == PEER else "-"
        style = {"color": colour, "linewidth": 2 if colour in (PRODUCT_COLOUR, PEER_COLOUR) else 1.4}
        label = f"{curve.name}: {curve.milliseconds[-1]:#.3g}"
        if curve.extrapolated:
            axes.plot([sizes[0], sizes[-1]], [curve.milliseconds[0]] * 2, linestyle=":", **style)
            label += f", measured at {curve.batch_sizes[0]}"
        drawn = axes.plot(
            curve.batch_sizes, curve.milliseconds, line, marker=marker, markersize=5, label=label, **style
        )
        lines.append((curve.milliseconds[-1], drawn[0]))
    handles = [line for _, line in sorted(lines, key=lambda end: -end[0])]
    figure.legend(handles=handles, loc="outside center right", fontsize=9, frameon=False, labelcolor="linecolor")
    axes.set_xticks(sizes, [f"{size}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    xlabel, micro = f"sequences of at most {run.curves[0].length} tokens in a step", run.curves[0].micro_batch
    if sizes[-1] > micro:
        xlabel += f" (above {micro}: gradients of micro-batches of {micro} added up)"
    axes.set_xlabel(xlabel)
    axes.set_ylabel("milliseconds per real token")
    axes.grid(axis="y", which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Training step, {run.preset}: one idea after the other", loc="left", fontweight="bold", pad=22)
    subtitle = f"{run.machine['cpu']}, threads: {run.machine['threads']}; torch {run.versions['torch']}, "
    subtitle += f"transformers {run.versions['transformers']}; commit {run.commit[:8]}, {run.date[:10]}"
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=8, color="#555555")
    figure.savefig(path, dpi=110)


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
