"""Which settings that the paper leaves open serve each model best: equally many short runs of both."""

from __future__ import annotations

from dataclasses import dataclass


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


def _variant(arch: str, name: str, what: str, *arguments: str) -> Variant:
    return Variant(f"{arch}-{name}", arch, what, arguments)


# Five of each. What is varied for both is varied alike; HanGlyph's rate has no twin, so BERT has one more of its own.
VARIANTS = (
    _variant("glyphcrm", "rate-5e-4", "rate 5e-4", "--learning-rate", "5e-4"),
    _variant("glyphcrm", "rate-1e-3", "rate 1e-3", "--learning-rate", "1e-3"),
    _variant("glyphcrm", "rate-2e-3", "rate 2e-3", "--learning-rate", "2e-3"),
    _variant(
        "glyphcrm", "normal-positions", "rate 2e-3, positions start normal",
        *("--learning-rate", "2e-3", "--position-initializer", "normal"),
    ),
    _variant(
        "glyphcrm", "glyph-rate-1e-3", "rate 2e-3, HanGlyph's 1e-3",
        *("--learning-rate", "2e-3", "--glyph-learning-rate", "1e-3"),
    ),
    _variant("bert", "rate-5e-4", "rate 5e-4", "--learning-rate", "5e-4"),
    _variant("bert", "rate-1e-3", "rate 1e-3", "--learning-rate", "1e-3"),
    _variant("bert", "rate-2e-3", "rate 2e-3", "--learning-rate", "2e-3"),
    _variant(
        "bert", "normal-positions", "rate 2e-3, positions start normal",
        *("--learning-rate", "2e-3", "--position-initializer", "normal"),
    ),
    _variant("bert", "rate-4e-3", "rate 4e-3", "--learning-rate", "4e-3"),
)  # fmt: skip


def runs_of_each() -> dict[str, int]:
    """Return how many runs each architecture has."""
    return {arch: sum(variant.arch == arch for variant in VARIANTS) for arch in ("glyphcrm", "bert")}
