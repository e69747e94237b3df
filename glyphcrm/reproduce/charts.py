"""The charts of RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glyphcrm.training.figures import BLUE, RED, curve, new_figure, save_figure, unframe, written

COLOURS = {"glyphcrm": RED, "bert": BLUE}
NAMES = {"glyphcrm": "GlyphCRM", "bert": "BERT"}


def draw_pretraining(runs: Mapping[str, Sequence[list[dict[str, float]]]], path: Path) -> None:
    """Draw the validation MLM loss of both models, by step and by time (the paper's Figure 7).

    `runs` has of each architecture the lines of metrics.jsonl, of each seed.
    """
    figure, panels = _figure(2, columns=2)
    kinds = (("step", "step", 1), ("seconds", "minutes of training", 60))
    for axes, (key, label, scale) in zip(panels, kinds, strict=True):
        for arch, entries in ((arch, entries) for arch, seeds in runs.items() for entries in seeds):
            places, losses = curve(entries, key, "eval_mlm_loss")
            axes.plot([place / scale for place in places], losses, "o-", markersize=4, alpha=0.8, color=COLOURS[arch])
        axes.set(xlabel=label, xlim=(0, None))
    panels[0].set_ylabel("validation MLM loss (nats)")
    _title(figure, "Masked language modelling, by step and by time", runs)
    save_figure(figure, path)


def draw_scores(spreads: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Draw the test scores of both models on every task, with their standard deviations.

    `spreads` is title of the task -> architecture -> "mean" and "deviation" within [0, 1], as in summary.json.
    """
    figure, (axes,) = _figure(1, height=0.55 * len(spreads) + 1.2)
    for offset, arch in ((-0.18, "glyphcrm"), (0.18, "bert")):
        there = {i + offset: of_arch[arch] for i, of_arch in enumerate(spreads.values()) if arch in of_arch}
        axes.barh(
            list(there),
            [100 * spread["mean"] for spread in there.values()],
            xerr=[100 * (spread["deviation"] or 0.0) for spread in there.values()],
            height=0.34,
            color=COLOURS[arch],
            label=NAMES[arch],
            error_kw={"linewidth": 1, "ecolor": "#333333"},
        )
    axes.set_yticks(range(len(spreads)), list(spreads), **written())
    axes.invert_yaxis()
    axes.set(xlabel="test score (%)", xlim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    save_figure(figure, path)


def draw_robustness(
    curves: Mapping[str, Mapping[str, Mapping[str, float]]], counts: Mapping[str, int], path: Path
) -> None:
    """Draw the score against the share of the characters with look-alikes that these replaced, a panel for each task.

    A point is as high in all panels. `curves` is title of the task -> architecture -> share -> score, both within
    [0, 1]; `counts` has the number of test examples of those tasks whose score is an accuracy, which gives the
    standard error.
    """
    figure, panels = _figure(len(curves), columns=5, width=2.5, height=3.0)
    ends = []
    for axes, (title, of_arch) in zip(panels, curves.items(), strict=True):
        low, high = 100.0, 0.0
        for arch, scores in of_arch.items():
            shares = [100 * float(share) for share in scores]
            percents = [100 * score for score in scores.values()]
            errors = [(p * (100 - p) / counts[title]) ** 0.5 if title in counts else 0.0 for p in percents]
            look = {"color": COLOURS[arch], "markersize": 4, "elinewidth": 1, "capsize": 2 if title in counts else 0}
            axes.errorbar(shares, percents, errors, fmt="o-", **look)
            low = min(low, *(p - error for p, error in zip(percents, errors, strict=True)))
            high = max(high, *(p + error for p, error in zip(percents, errors, strict=True)))
        axes.set_xticks(shares)
        axes.set_title(title, loc="left", **written())
        ends.append((low, high))
    span = 1.1 * max(high - low for low, high in ends)
    for axes, (low, high) in zip(panels, ends, strict=True):
        bottom = max(0.0, (low + high - span) / 2)
        axes.set_ylim(bottom, bottom + span)
        axes.yaxis.set_major_locator(_every(5))
    figure.supxlabel("replaced, of the characters that have look-alikes (%)", fontsize=9)
    figure.supylabel("score (%)", fontsize=9)
    _title(figure, "Test texts with look-alikes; bars: standard error, of accuracies", NAMES)
    save_figure(figure, path)


def _every(step: float) -> Any:
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(step)


def _title(figure: Any, title: str, archs: Iterable[str]) -> None:
    """Put a title above all panels, and a legend of the models beside it."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=COLOURS[arch], marker="o", markersize=4, label=NAMES[arch]) for arch in archs]
    figure.legend(handles=lines, loc="outside upper right", ncols=len(lines), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")


def _figure(panels: int, columns: int = 1, width: float = 5, height: float = 3.8) -> tuple[Any, list[Any]]:
    """Return a figure and its panels, each of a size in inches, of which at most `columns` are side by side."""
    columns = min(panels, columns)
    rows = -(-panels // columns)
    figure = new_figure(max(width * columns, 7.5), height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    for used in axes[:panels]:
        unframe(used)
    return figure, axes[:panels]
