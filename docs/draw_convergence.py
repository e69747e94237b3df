"""Draw docs/convergence.png from the runs in docs/results.

Run from the repository: `.venv/bin/python docs/draw_convergence.py`.
"""

from __future__ import annotations

from pathlib import Path

from glyphcrm.training.figures import BLUE, RED, curve, new_figure, save_figure, unframe
from glyphcrm.training.progress import read_metrics

STUDY = Path(__file__).parent / "results" / "runs" / "study"
CURVES = {  # run: label, colour, style
    "glyphcrm-plain-projections": ("GlyphCRM, projections not whitened", RED, ":"),
    "glyphcrm-rate": ("GlyphCRM", RED, "-"),
    "glyphcrm-free-glyphs": ("GlyphCRM, a free vector for each character", RED, "--"),
    "bert-untied-decoder": ("BERT, decoder not tied", BLUE, "--"),
    "bert-rate": ("BERT", BLUE, "-"),
}


def main() -> None:
    """Write the picture beside this file."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    unframe(axes)
    for run, (label, colour, style) in CURVES.items():
        steps, losses = curve(read_metrics(STUDY / run / "metrics.jsonl"), "step", "eval_mlm_loss")
        axes.plot(steps, losses, style, color=colour, label=label)
    axes.set(xlabel="step, of 128 sequences of at most 32 characters", ylabel="validation MLM loss (nats)")
    axes.set_title("How fast the size tiny learns, and which part is slow", fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=9)
    save_figure(figure, Path(__file__).with_name("convergence.png"))


if __name__ == "__main__":
    main()
