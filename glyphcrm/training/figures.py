"""What all charts of runs share: colours, axes without a frame, smoothed curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLUE, PALE, RED = "#1f4e8c", "#9db8d9", "#c8452d"


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure, sizes in inches, made without pyplot: no display, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG with a palette, which is a third as large as one without."""
    import numpy as np
    from PIL import Image

    figure.set_dpi(130)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def unframe(axes: Any, grid: str = "both") -> None:
    """Leave of the frame the lower and the left side, and draw a pale grid."""
    axes.grid(axis=grid, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def curve(entries: Sequence[Mapping[str, float]], x: str, y: str) -> tuple[list[float], list[float]]:
    """Return `x` and `y` of those entries of a metrics.jsonl that have `y`."""
    some = [entry for entry in entries if y in entry]
    return [entry[x] for entry in some], [entry[y] for entry in some]


def smoothed(values: Sequence[float], share: float) -> list[float]:
    """Return the mean of each value and those before it, over a window of a share of all."""
    window = max(1, round(len(values) * share))
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]
