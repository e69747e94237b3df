"""What `glyphcrm reproduce` can be told."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from glyphcrm.configuration import PRESETS
from glyphcrm.errors import UserError


@dataclass(frozen=True)
class ReproduceOptions:
    """The settings of a reproduction; see `add_reproduce_parser` for what they mean."""

    preset: str
    text: tuple[str, ...]
    data: Path | None
    tasks: tuple[str, ...]
    output_dir: Path
    hours: float
    seeds: int
    max_length: int
    batch_size: int
    vocabulary_size: int
    pretraining_steps: int | None
    train_samples: int | None
    without: tuple[str, ...]
    bert_vocabulary: Path | None
    look_alikes: Path | None
    traditional: Path | None
    other_font: str | None
    paper_scores: Path | None

    def identity(self) -> dict[str, object]:
        """Return what decides the plan, and so the results."""
        # These decide what is reported, not what is trained.
        reported = ("output_dir", "data", "without", "bert_vocabulary", "look_alikes", "traditional", "other_font")
        settings = asdict(self)
        return {name: value for name, value in settings.items() if name not in (*reported, "paper_scores", "tasks")}


STAGES = ("study", "finetuning", "held_out", "robustness", "unknown")


def add_reproduce_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `glyphcrm reproduce`."""
    parser = subparsers.add_parser(
        "reproduce",
        help="pre-train GlyphCRM and BERT, fine-tune both on every task, write RESULTS.md",
        description="Pre-train GlyphCRM and a BERT of the same size on the same text, fine-tune both on every task "
        "that has data, compare them where only pictures help, and write RESULTS.md with charts and JSON. "
        "The same command continues after an interruption, and skips what is done.",
    )
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), default="tiny", help="size of both models")
    add("--text", nargs="+", default=[], help="pre-training text, files or globs; default: the demo corpus")
    add("--data", type=Path, help="folder with the task folders; without it, the two demo tasks")
    add("--tasks", nargs="+", default=[], help="these tasks alone; default: all that have data")
    add("--output-dir", type=Path, default=Path("runs/reproduce"))
    add("--hours", type=float, default=8.0, help="time to plan for, on this machine; steps and samples follow from it")
    add("--seeds", type=int, default=3, help="fine-tuning runs of each model on each task")
    add("--max-length", type=int, help="tokens a sequence of pre-training; default: the size's own")
    add("--batch-size", type=int, help="sequences a step of pre-training; default: the size's own")
    add("--vocabulary-size", type=int, default=18_612, help="at most this many characters can be predicted")
    add("--pretraining-steps", type=int, help="instead of what the time allows")
    add("--train-samples", type=int, help="of each task at most, instead of what the time allows")
    add("--without", nargs="+", choices=STAGES, default=[], help="stages to leave out")
    add("--bert-vocabulary", type=Path, help="vocab.txt of bert-base-chinese, to count what it does not know")
    add("--look-alikes", type=Path, help="SIGHAN's similar_shape.txt; default: the nearest pictures")
    add("--traditional", type=Path, help="OpenCC's STCharacters.txt, to rewrite the test texts")
    add("--other-font", help="a font to draw the test texts with")
    add(
        "--paper-scores", type=Path, help='JSON, {"TASK": {"bert": 0.9, "glyphcrm": 0.9}}: the paper\'s, for the tables'
    )
    parser.set_defaults(run=run_reproduce)


def run_reproduce(arguments: argparse.Namespace) -> int:
    """Check the settings and reproduce; return the exit code."""
    from glyphcrm.pretraining.options import RECIPES
    from glyphcrm.reproduce.plan import FEWEST_STEPS
    from glyphcrm.reproduce.run import reproduce

    for name, low in (
        ("hours", 0.01),
        ("seeds", 1),
        ("max_length", 16),
        ("batch_size", 1),
        ("vocabulary_size", 10),
        ("pretraining_steps", FEWEST_STEPS),
        ("train_samples", 8),
    ):
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give {low} or more")
    recipe = RECIPES[arguments.preset]
    arguments.max_length = arguments.max_length or recipe.max_length
    arguments.batch_size = arguments.batch_size or recipe.batch_size
    settings = {name: getattr(arguments, name) for name in ReproduceOptions.__dataclass_fields__}
    for name in ("text", "tasks", "without"):
        settings[name] = tuple(settings[name])
    return reproduce(ReproduceOptions(**settings))
