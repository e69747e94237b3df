"""loss.png: how the losses of a run fell."""

from __future__ import annotations

from pathlib import Path

from glyphcrm.training.figures import BLUE, PALE, RED, curve, new_figure, save_figure, smoothed, unframe

SMOOTHING = 0.1  # share of the run that the smoothed line averages over
CHANCE = 0.693147  # ln 2


def draw_loss_chart(entries: list[dict[str, float]], unigram_entropy: float, path: Path) -> None:
    """Draw MLM and NSP loss, training and validation, into a PNG.

    `entries` are the lines of the run's metrics.jsonl; `unigram_entropy`, in nats a character, is drawn as the line
    that a model of the context has to pass.
    """
    figure = new_figure(10, 4.2)
    panels = (
        ("mlm_loss", "Masked language modelling", unigram_entropy, "unigram entropy"),
        ("nsp_loss", "Next-sentence prediction", CHANCE, "chance, ln 2"),
    )
    for axes, (name, title, level, level_name) in zip(figure.subplots(1, 2), panels, strict=True):
        if (train := curve(entries, "step", name))[0]:
            axes.plot(*train, color=PALE, linewidth=0.8, label="training, as logged")
            smooth = smoothed(train[1], SMOOTHING)
            axes.plot(train[0], smooth, color=BLUE, linewidth=1.8, label="training, smoothed")
        if (validation := curve(entries, "step", f"eval_{name}"))[0]:
            axes.plot(*validation, "o-", color=RED, markersize=4, linewidth=1.2, label="validation")
        axes.axhline(level, color="#666666", linestyle="--", linewidth=1, label=f"{level_name} {level:.3f}")
        axes.set(title=title, xlabel="step", ylabel="loss (nats)")
        unframe(axes)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
