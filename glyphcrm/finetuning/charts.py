"""chart.png: which labels were taken for which, or how well each type of entity was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glyphcrm.training.figures import BLUE, PALE, RED, new_figure, save_figure, unframe, written

LABELS_SHOWN = 40  # more would not be legible
LONGEST_LABEL = 16


def draw_confusion_matrix(
    gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str], title: str, path: Path
) -> None:
    """Draw a PNG of how often each label was predicted for each: numbers of texts, coloured by share of the row.

    Of more than 40 `labels` those that are most frequent in `gold` are shown.
    """
    from sklearn.metrics import confusion_matrix

    shown = list(labels)
    if len(shown) > LABELS_SHOWN:
        counted = Counter(gold)
        frequent = sorted(shown, key=lambda label: -counted[label])[:LABELS_SHOWN]
        shown = [label for label in shown if label in frequent]
        title = f"{title}\nthe {LABELS_SHOWN} most frequent of {len(labels)} labels"
    counts = confusion_matrix(gold, predicted, labels=shown)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.5 * len(shown) + 2.2)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_short(label) for label in shown]
    axes.set_xticks(range(len(shown)), names, rotation=45, ha="right", rotation_mode="anchor", **written())
    axes.set_yticks(range(len(shown)), names, **written())
    look = written(9 if counts.max() < 1000 else 7.5)
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        number = f"{counts[row, column]}"
        axes.text(column, row, number, ha="center", va="center", color=colour, **look)
    axes.set_xlabel("predicted", **written())
    axes.set_ylabel("gold", **written())
    axes.set_title(title, **written(11))
    save_figure(figure, path)


def draw_entity_scores(scores: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """Draw precision, recall and F1 of each type of entity, as `entity_scores` returns them, as bars of a PNG."""
    figure = new_figure(max(5.5, 1.7 * len(scores) + 1.5), 4.2)
    axes = figure.subplots()
    width = 0.27
    for offset, (name, colour) in enumerate(zip(("precision", "recall", "f1"), (BLUE, PALE, RED), strict=True)):
        values = [entity[name] for entity in scores.values()]
        places = np.arange(len(scores)) + (offset - 1) * width
        bars = axes.bar(places, values, width * 0.94, color=colour, label="F1" if name == "f1" else name)
        axes.bar_label(bars, [f"{value:.1%}" for value in values], **written(7), padding=2)
    names = [f"{_short(name)}\n{entity['support']:.0f} in the test set" for name, entity in scores.items()]
    axes.set_xticks(range(len(scores)), names, **written())
    axes.set_ylim(0, 1.15)
    unframe(axes, grid="y")
    axes.set_axisbelow(True)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)], **written())
    axes.legend(frameon=False, prop=written(8)["fontproperties"], ncols=3, loc="upper right")
    axes.set_title(title, **written(11))
    save_figure(figure, path)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
