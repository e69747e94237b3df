"""The options of `pytest bench/` that begin with --throughput."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.arguments import new_file
from bench.throughput.history import DEFAULT_FILE, Row
from bench.throughput.material import Sizes, sizes
from glyphcrm.cli.arguments import whole_number
from glyphcrm.config_values import PRESETS
from glyphcrm.errors import UserError

ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """What was asked for; see `add_options`."""

    sizes: Sizes
    rounds: int  # (rounds + 1) // 2 of the larger training step
    text: list[str]  # files; none: the demo corpus
    reviews: str | None
    micro_batch: int
    history: Path | None

    @property
    def described_text(self) -> str:
        """The texts, for people: names of files, without their folders."""
        training = ", ".join(Path(file).name for file in self.text) or "demo corpus"
        return f"training text: {training}; inference: {Path(self.reviews).name if self.reviews else 'demo reviews'}"


ROWS = pytest.StashKey[list[Row]]()  # what the tests of a session have measured


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("throughput", "GlyphCRM beside BERT: `pytest bench/ --benchmark -k throughput`")

    def add(name: str, explanation: str, **more: Any) -> None:
        group.addoption(f"--throughput-{name}", help=explanation, **more)

    text = "training text: .txt, .jsonl, .parquet, or .tsv with a column text_a or text (default: demo corpus)"
    micro_batch = "sequences of a training step computed at once, gradients of the rest are added up (default: 32)"
    history = f"file that the run is added to as a line (default, with base only: bench/{DEFAULT_FILE.name})"
    add("preset", "size of both models (default: base)", choices=list(PRESETS))
    add("rounds", f"rounds of each comparison (default: {ROUNDS})", type=whole_number(1))
    add("text", text, nargs="+", action="extend", default=[], metavar="FILE")
    add("reviews", "texts for inference: such a .tsv, or a text a line (default: the demo's reviews)", metavar="FILE")
    add("micro-batch", micro_batch, type=whole_number(1), metavar="N")
    add("history", history, type=new_file, metavar="FILE")


def read_options(config: pytest.Config) -> Options:
    """Read the options; without --benchmark everything runs once, at the size of the tests.

    Raises `UserError`: a step is no multiple of its micro-batches.
    """

    def asked(name: str) -> Any:
        return config.getoption(f"--throughput-{name}")

    measure = config.getoption("--benchmark")
    preset = asked("preset") or ("base" if measure else "nano")
    amounts = sizes(preset)
    micro_batch = asked("micro-batch") or amounts.batch
    for sequences in (amounts.batch, amounts.batch * amounts.accumulated):
        if sequences % min(sequences, micro_batch):
            raise UserError(f"a step of {sequences} sequences is no multiple of --throughput-micro-batch {micro_batch}")
    return Options(
        sizes=amounts,
        rounds=asked("rounds") or (ROUNDS if measure else 1),
        text=asked("text"),
        reviews=asked("reviews"),
        micro_batch=micro_batch,
        history=asked("history") or (DEFAULT_FILE if measure and preset == "base" else None),
    )
