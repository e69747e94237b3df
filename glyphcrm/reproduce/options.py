"""What `glyphcrm reproduce` can be told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from glyphcrm.config_values import PRESETS
from glyphcrm.errors import UserError
from glyphcrm.pretraining.options import RECIPES
from glyphcrm.training.options import CommandLineOptions, check_ranges, option
from glyphcrm.vocabulary import DEFAULT_VOCABULARY_SIZE

STAGES = (
    "study",
    "finetuning",
    "held_out",
    "robustness",
    "unknown",
    "open_prediction",
    "other_fonts",
)  # those that may be left out
FEWEST_STEPS = 4
MOST_AT_ONCE = 64  # runs side by side
# These decide what is reported, not what is trained.
REPORTED = (
    *("output_dir", "data", "tasks", "without"),
    *("bert_vocabulary", "look_alikes", "other_font", "train_font", "side_by_side", "stop_after"),
)


@dataclass
class ReproduceOptions(CommandLineOptions):
    """Pre-train GlyphCRM and a BERT of the same size on the same text, fine-tune both on every task that has data,
    compare them where only pictures help, and write RESULTS.md with charts and JSON. The same command continues after
    an interruption, and skips what is done."""

    preset: str = option("tiny", "size of both models", tuple(PRESETS))
    text: list[str] = option([], "pre-training text, files or globs; default: the demo corpus")
    data: Path | None = option(None, "folder with the task folders; without it, the two demo tasks")
    tasks: list[str] = option([], "these tasks alone; default: all that have data")
    output_dir: Path = option(Path("runs/reproduce"), "where everything goes")
    hours: float = option(8.0, "time to plan for, on this machine; steps and samples follow from it")
    seeds: int = option(3, "fine-tuning runs of each model on each task")
    max_length: int = option(None, "tokens a sequence of pre-training; default: the size's own")
    batch_size: int = option(None, "sequences a step of pre-training; default: the size's own")
    vocabulary_size: int = option(DEFAULT_VOCABULARY_SIZE, "at most this many characters can be predicted")
    pretraining_steps: int | None = option(None, "instead of what the time allows")
    train_samples: int | None = option(None, "of each task at most, instead of what the time allows")
    without: list[str] = option([], "stages to leave out", STAGES)
    bert_vocabulary: Path | None = option(None, "vocab.txt of bert-base-chinese, to count what it does not know")
    look_alikes: Path | None = option(None, "SIGHAN's similar_shape.txt; default: the nearest pictures")
    other_font: str | None = option(None, "a font to draw the test texts with")
    train_font: list[str] = option(
        [], "with --other-font: what it brings to train in these fonts, too; then the tests are in that one"
    )
    side_by_side: int | None = option(
        None, "runs at once; default: one on a CPU, on a GPU as many as its memory holds, seven at most"
    )
    stop_after: float | None = option(None, "minutes after which to save and stop; the same command continues")

    def __post_init__(self) -> None:
        recipe = RECIPES[self.preset]
        self.max_length = recipe.max_length if self.max_length is None else self.max_length
        self.batch_size = recipe.batch_size if self.batch_size is None else self.batch_size
        check_ranges(
            asdict(self),
            {
                (0.01, math.inf): ("hours",),
                (1, math.inf): ("batch_size",),
                (1, 10_000): ("seeds",),
                (1, MOST_AT_ONCE): ("side_by_side",),
                (0.01, 1e6): ("stop_after",),
                (16, math.inf): ("max_length",),
                (10, math.inf): ("vocabulary_size",),
                (FEWEST_STEPS, math.inf): ("pretraining_steps",),
                (8, math.inf): ("train_samples",),
            },
        )
        if self.train_font and self.other_font is None:
            raise UserError("--train-font: what it brings is measured in --other-font, which is missing; give both")

    def identity(self) -> dict[str, object]:
        """Return what decides the plan, and so the results."""
        return {name: value for name, value in asdict(self).items() if name not in REPORTED}
