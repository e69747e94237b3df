"""The charts of RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glyphcrm.training.figures import BLUE, RED, curve, new_figure, save_figure, smoothed, unframe

COLOURS = {"glyphcrm": RED, "bert": BLUE}
MOST_COLUMNS = 3  # of panels
SMOOTHING = 0.03  # share of a run that its training loss is averaged over
NAMES = {"glyphcrm": "GlyphCRM", "bert": "BERT"}


def draw_pretraining(runs: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    """Draw validation and training MLM loss of both models, by step and by time (the paper's Figure 7).

    `runs` has the lines of metrics.jsonl of each architecture.
    """
    figure, panels = _figure(2)
    kinds = (("step", "step", 1), ("seconds", "minutes of training", 60))
    for axes, (key, label, scale) in zip(panels, kinds, strict=True):
        for arch, entries in runs.items():
            for name, smoothing, look in (
                ("mlm_loss", SMOOTHING, {"linewidth": 1, "alpha": 0.4}),
                ("eval_mlm_loss", 0.0, {"marker": "o", "markersize": 4, "label": NAMES[arch]}),
            ):
                places, losses = curve(entries, key, name)
                places = [place / scale for place in places]
                axes.plot(places, smoothed(losses, smoothing), color=COLOURS[arch], **look)
        axes.set(xlabel=label, ylabel="MLM loss (nats)", xlim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_title("Masked language modelling: validation, and training (pale)", fontsize=10, loc="left")
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
    axes.set_yticks(range(len(spreads)), list(spreads), fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy, or entity F1 for NER (%)", xlim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    save_figure(figure, path)


def draw_robustness(curves: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draw the score against the share of the characters with look-alikes that these replaced, a panel for each task.

    `curves` is title of the task -> architecture -> share -> score, both within [0, 1].
    """
    figure, panels = _figure(len(curves))
    for axes, (title, of_arch) in zip(panels, curves.items(), strict=True):
        for arch, scores in of_arch.items():
            shares = [100 * float(share) for share in scores]
            percents = [100 * score for score in scores.values()]
            axes.plot(shares, percents, "o-", color=COLOURS[arch], label=NAMES[arch])
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
    for used in axes[:panels]:
        unframe(used)
    return figure, axes[:panels]
