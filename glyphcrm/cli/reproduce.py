"""`glyphcrm reproduce`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from glyphcrm.configuration import PRESETS
from glyphcrm.errors import UserError
from glyphcrm.reproduce.options import STAGES, ReproduceOptions


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line; return the work that it asks for."""
    parser = argparse.ArgumentParser(
        prog=prog,
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
    paper_help = 'JSON, {"TASK": {"bert": 0.9, "glyphcrm": 0.9}}: the paper\'s, for the tables'
    add("--paper-scores", type=Path, help=paper_help)
    return partial(run, parser.parse_args(words))


def run(arguments: argparse.Namespace) -> int:
    """Check the settings and reproduce; return the exit code."""
    from glyphcrm.pretraining.options import RECIPES
    from glyphcrm.reproduce.plan import FEWEST_STEPS
    from glyphcrm.reproduce.run import reproduce
    from glyphcrm.training.run_directory import resumable

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
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(arguments).items()
    }
    settings["max_length"] = arguments.max_length or recipe.max_length
    settings["batch_size"] = arguments.batch_size or recipe.batch_size
    with resumable(arguments.output_dir):
        print(f"\n{reproduce(ReproduceOptions(**settings))}")
    return 0
