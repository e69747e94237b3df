"""What all charts of runs share: colours, axes without a frame, smoothed curves."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from glyphcrm.files import write_atomically
from glyphcrm.glyphs.fonts import default_font

PAUSE = 5.0  # times as slow as half of a run's steps: the machine slept, or the process was stopped
BLUE, PALE, RED = "#1f4e8c", "#9db8d9", "#c8452d"


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure, sizes in inches, made without pyplot: no display, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG with a palette, which is a third as large as one without; raise `UserError` if it cannot be."""
    import numpy as np
    from PIL import Image

    figure.set_dpi(130)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    content = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    write_atomically(path, content.getvalue())


def written(size: float = 9) -> dict[str, Any]:
    """Return how matplotlib is to write what users name: in a font with Chinese, which its own lacks; no formulas."""
    from matplotlib.font_manager import FontProperties

    return {"fontproperties": FontProperties(fname=str(default_font().path), size=size), "parse_math": False}


def unframe(axes: Any, grid: str = "both") -> None:
    """Leave of the frame the lower and the left side, and draw a pale grid."""
    axes.grid(axis=grid, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def curve(entries: Sequence[Mapping[str, float]], x: str, y: str) -> tuple[list[float], list[float]]:
    """Return `x` and `y` of those entries of a metrics.jsonl that have `y`; "seconds" as of `without_pauses`."""
    some = [entry for entry in (without_pauses(entries) if x == "seconds" else entries) if y in entry]
    return [entry[x] for entry in some], [entry[y] for entry in some]


def without_pauses(entries: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the entries of a metrics.jsonl with a clock, "seconds", that stood still during pauses.

    Where steps took five times the run's median or more, each counts as the median.
    """
    places = [{"step": 0.0, "seconds": 0.0}, *entries]
    times = [(b["seconds"] - a["seconds"], b["step"] - a["step"]) for a, b in pairwise(places)]
    median = statistics.median([seconds / steps for seconds, steps in times if steps] or [0.0])
    clock, shifted = 0.0, []
    for entry, (seconds, steps) in zip(entries, times, strict=True):
        clock += seconds if seconds < PAUSE * median * max(steps, 1) else median * steps
        shifted.append({**entry, "seconds": clock})
    return shifted


def smoothed(values: Sequence[float], share: float) -> list[float]:
    """Return the mean of each value and those before it, over a window of a share of all."""
    window = max(1, round(len(values) * share))
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]
