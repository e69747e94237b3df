"""The charts of RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glyphcrm.training.figures import BLUE, RED, new_figure, save_figure, smoothed, unframe

COLOURS = {"glyphcrm": RED, "bert": BLUE}
MOST_COLUMNS = 3  # of panels
SMOOTHING = 0.03  # share of a run that its training loss is averaged over
NAMES = {"glyphcrm": "GlyphCRM", "bert": "BERT"}


def draw_pretraining(runs: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    """Draw validation and training MLM loss of both models, by step and by time (the paper's Figure 7).

    Args:
        runs: the lines of metrics.jsonl of each architecture.
        path: the PNG.
    """
    figure, panels = _figure(2)
    for axes, key, label in zip(panels, ("step", "seconds"), ("step", "minutes of training"), strict=True):
        scale = 60 if key == "seconds" else 1
        for arch, entries in runs.items():
            train = [(e[key] / scale, e["mlm_loss"]) for e in entries if "mlm_loss" in e]
            validation = [(e[key] / scale, e["eval_mlm_loss"]) for e in entries if "eval_mlm_loss" in e]
            steps, losses = _columns(train)
            axes.plot(steps, smoothed(losses, SMOOTHING), color=COLOURS[arch], linewidth=1, alpha=0.4)
            axes.plot(*_columns(validation), "o-", color=COLOURS[arch], markersize=4, label=NAMES[arch])
        axes.set(xlabel=label, ylabel="MLM loss (nats)", xlim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_title("Masked language modelling: validation, and training (pale)", fontsize=10, loc="left")
    save_figure(figure, path)


def draw_scores(rows: Sequence[tuple[str, Mapping[str, tuple[float, float]]]], path: Path) -> None:
    """Draw the test scores of both models on every task, with their standard deviations.

    Args:
        rows: title of the task; mean and standard deviation of each architecture, within [0, 1].
        path: the PNG.
    """
    figure, (axes,) = _figure(1, height=0.55 * len(rows) + 1.2)
    for offset, arch in ((-0.18, "glyphcrm"), (0.18, "bert")):
        there = [(i, scores[arch]) for i, (_, scores) in enumerate(rows) if arch in scores]
        axes.barh(
            [i + offset for i, _ in there],
            [100 * mean for _, (mean, _) in there],
            xerr=[100 * deviation for _, (_, deviation) in there],
            height=0.34,
            color=COLOURS[arch],
            label=NAMES[arch],
            error_kw={"linewidth": 1, "ecolor": "#333333"},
        )
    axes.set_yticks(range(len(rows)), [title for title, _ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy, or entity F1 for NER (%)", xlim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    save_figure(figure, path)


def draw_robustness(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path) -> None:
    """Draw the score against the share of the characters with look-alikes that these replaced, a panel for each task.

    Args:
        curves: task title -> architecture -> (share, score), both within [0, 1].
        path: the PNG.
    """
    figure, panels = _figure(len(curves))
    for axes, (title, of_arch) in zip(panels, curves.items(), strict=True):
        for arch, points in of_arch.items():
            axes.plot(*_columns([(100 * x, 100 * y) for x, y in points]), "o-", color=COLOURS[arch], label=NAMES[arch])
        axes.set(xlabel="replaced, of characters with look-alikes (%)", ylabel="score (%)")
        axes.set_title(title, fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _figure(panels: int, height: float = 3.8) -> tuple[Any, list[Any]]:
    columns = min(panels, MOST_COLUMNS)
    rows = -(-panels // columns)
    figure = new_figure(5 * max(columns, 1.5), height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    axes = axes[:panels]
    for one in axes:
        unframe(one)
    return figure, axes


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
