"""Draws steps on paper: a panel a chip, a bar a step, a colour a term. Called by `bench.step_model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.operations import Term
from bench.step_time import StepTime

# Colour-blind safe (Okabe and Ito); grey for what is neither the model's arithmetic nor its memory traffic.
COLOURS = {
    Term.NINE_BY_NINE: "#d55e00",
    Term.HANGLYPH: "#e69f00",
    Term.MATMULS: "#0072b2",
    Term.ATTENTION: "#56b4e9",
    Term.ELEMENTWISE: "#009e73",
    Term.HEADS: "#f0e442",
    Term.OPTIMISER: "#cc79a7",
    Term.EXCHANGE: "#444444",
    Term.ALL_REDUCE: "#777777",
    Term.HOST: "#bbbbbb",
}
LIGHT = (Term.HANGLYPH, Term.ATTENTION, Term.HEADS, Term.OPTIMISER)  # their labels are black
GAP = 0.5  # between groups, in bars
LABELLED_SHARE = 0.06  # of the axis; in narrower parts the milliseconds do not fit


def draw_chart(panels: Mapping[str, Sequence[Sequence[tuple[str, StepTime]]]], title: str, path: Path) -> None:
    """Draw a panel for each chip, with its groups of named steps from the top, into a PNG."""
    # Without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = sum(len(group) + GAP for group in next(iter(panels.values())))
    figure = Figure(figsize=(11, len(panels) * (0.3 * rows + 0.6) + 1), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    steps = [step for groups in panels.values() for group in groups for _, step in group]
    shown = [term for term in Term if any(term in step.seconds for step in steps)]
    every_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (chip, groups) in zip(every_axes, panels.items(), strict=True):
        _draw_panel(axes, groups, shown)
        axes.set_title(chip, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("milliseconds a step", fontsize=9)
    handles = [Patch(color=COLOURS[term], label=term) for term in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.set_dpi(100)
    canvas.draw()
    # A palette makes the file a third as large.
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(128).save(path, optimize=True)


def _draw_panel(axes: Any, groups: Sequence[Sequence[tuple[str, StepTime]]], shown: Sequence[Term]) -> None:
    longest = 1e3 * max(step.total for group in groups for _, step in group)
    y = 0.0
    names = []
    for group in groups:
        for name, step in group:
            names.append((y, name))
            left = 0.0
            for term in shown:
                width = 1e3 * step.seconds.get(term, 0.0)
                axes.barh(y, width, left=left, height=0.8, color=COLOURS[term])
                if width > LABELLED_SHARE * longest:
                    colour = "black" if term in LIGHT else "white"
                    axes.text(left + width / 2, y, f"{width:.1f}", color=colour, fontsize=8.5, ha="center", va="center")
                left += width
            speed = f"{left:.1f} ms   {_short(step.tokens_per_second)} tokens/s"
            axes.text(left + 0.01 * longest, y, speed, fontsize=9, va="center")
            y += 1
        y += GAP
    axes.set_yticks([at for at, _ in names], [name for _, name in names], fontsize=9)
    axes.set_ylim(y - GAP - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * longest)  # room for the labels
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _short(number: float) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"
