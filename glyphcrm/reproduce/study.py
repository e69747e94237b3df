"""Which settings that the paper leaves open serve each model best: equally many trials of both."""

from __future__ import annotations

from dataclasses import dataclass

# Of long runs; the recipe of tiny is for the five minutes of the demo, and rises higher.
STUDIED_RATES = {"base": 1e-4, "small": 3e-4, "tiny": 1e-3, "nano": 1e-3}
TRIALS = 5  # of each model
SINUSOIDAL = (", positions start sinusoidal", "--position-initializer", "sinusoidal")


@dataclass(frozen=True)
class Variant:
    """A short pre-training run.

    Attributes:
        name: of its directory.
        arch: "glyphcrm" or "bert".
        what: its settings in words, for the table.
        arguments: the same for pretrain.py.
    """

    name: str
    arch: str
    what: str
    arguments: tuple[str, ...]


def variants(preset: str) -> tuple[Variant, ...]:
    """Return five variants of each model, with rates around the preset's own.

    What is varied for both is varied alike; HanGlyph's rate has no twin, so BERT has one more of its own.
    """
    rate = STUDIED_RATES[preset]
    return (
        _variant("glyphcrm", "half-rate", rate / 2),
        _variant("glyphcrm", "rate", rate),
        _variant("glyphcrm", "double-rate", 2 * rate),
        _variant("glyphcrm", "sinusoidal-positions", rate, *SINUSOIDAL),
        _variant("glyphcrm", "one-rate", rate, ", HanGlyph's too", "--glyph-learning-rate", f"{rate:g}"),
        _variant("bert", "quarter-rate", rate / 4),
        _variant("bert", "half-rate", rate / 2),
        _variant("bert", "rate", rate),
        _variant("bert", "double-rate", 2 * rate),
        _variant("bert", "sinusoidal-positions", rate, *SINUSOIDAL),
    )


def _variant(arch: str, name: str, rate: float, more: str = "", *arguments: str) -> Variant:
    return Variant(f"{arch}-{name}", arch, f"rate {rate:g}{more}", ("--learning-rate", f"{rate:g}", *arguments))
