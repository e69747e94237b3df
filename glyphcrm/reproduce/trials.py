"""Which settings that the paper leaves open serve each model best: equally many trials of both."""

from __future__ import annotations

from dataclasses import dataclass

from glyphcrm.pretraining.options import ABLATIONS, FREE, PLAIN, RECIPES, UNTIED

STUDIED_RATES = {"base": 1e-4, "small": 3e-4, "tiny": 1e-3, "nano": 1e-3}
WHAT = {
    PLAIN: "HanGlyph's projections trained and decayed as its other weights are",
    FREE: "in HanGlyph's place a vector for each character, free to learn at the encoder's rate",
    UNTIED: "decoder not tied to the embedding table",
}


@dataclass(frozen=True)
class Variant:
    """A short pre-training run."""

    name: str  # of its directory
    arch: str  # "glyphcrm" or "bert"
    what: str  # its settings in words, for the table
    arguments: tuple[str, ...]  # the same for pretrain.py
    is_ablation: bool = False  # it shows what a part does, and is not to be trained to the end


def variants(preset: str) -> tuple[Variant, ...]:
    """Return the same variants of both models, with rates around the preset's own, and then the ablations."""
    rate = STUDIED_RATES[preset]
    sinusoidal = ("--position-initializer", "sinusoidal")
    trials = [
        Variant(f"{arch}-{name}", arch, f"rate {value:g}{more}", ("--learning-rate", f"{value:g}", *arguments))
        for arch in ("glyphcrm", "bert")
        for name, value, more, arguments in (
            ("half-rate", rate / 2, "", ()),
            ("rate", rate, "", ()),
            ("double-rate", 2 * rate, "", ()),
            ("sinusoidal-positions", rate, ", positions start sinusoidal", sinusoidal),
        )
    ]
    settings = ("--learning-rate", f"{rate:g}", "--ablation")
    ablations = [
        Variant(f"{arch}-{name}", arch, f"rate {rate:g}; {WHAT[name]}", (*settings, name), is_ablation=True)
        for name, arch in ABLATIONS.items()
        if name != PLAIN or RECIPES[preset].projection_learning_rate is not None
    ]
    return (*trials, *ablations)
