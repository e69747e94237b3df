"""loss.png: how the losses of a run fell."""

from __future__ import annotations

from pathlib import Path

SMOOTHING = 0.1  # share of the run that the smoothed line averages over


def draw_loss_chart(entries: list[dict[str, float]], unigram_entropy: float, path: Path) -> None:
    """Draw MLM and NSP loss, training and validation, into a PNG.

    Args:
        entries: the lines of the run's metrics.jsonl.
        unigram_entropy: nats a character, drawn as the line that a model of the context has to pass.
        path: the PNG.
    """
    # Without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    chance = 0.693147
    panels = (
        ("mlm_loss", "Masked language modelling", unigram_entropy, "unigram entropy"),
        ("nsp_loss", "Next-sentence prediction", chance, "chance, ln 2"),
    )
    for axes, (name, title, level, level_name) in zip(figure.subplots(1, 2), panels, strict=True):
        train = [(e["step"], e[name]) for e in entries if name in e]
        validation = [(e["step"], e[f"eval_{name}"]) for e in entries if f"eval_{name}" in e]
        if train:
            steps, losses = zip(*train, strict=True)
            axes.plot(steps, losses, color="#9db8d9", linewidth=0.8, label="training, as logged")
            axes.plot(steps, _smoothed(losses), color="#1f4e8c", linewidth=1.8, label="training, smoothed")
        if validation:
            steps, losses = zip(*validation, strict=True)
            axes.plot(steps, losses, "o-", color="#c8452d", markersize=4, linewidth=1.2, label="validation")
        axes.axhline(level, color="#666666", linestyle="--", linewidth=1, label=f"{level_name} {level:.3f}")
        axes.set(title=title, xlabel="step", ylabel="loss (nats)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _smoothed(losses: tuple[float, ...]) -> list[float]:
    """Return the mean of each value and those before it, over a window of a share of the run."""
    window = max(1, round(len(losses) * SMOOTHING))
    return [sum(losses[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(losses))]
