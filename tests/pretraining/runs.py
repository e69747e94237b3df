"""How the tests run `glyphcrm pretrain`: a nano command line, in this process or in others of one thread."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from glyphcrm.cli.entry import run_command
from tests.robustness.processes import Run

REPOSITORY = Path(__file__).parents[2]


def main(arguments: Sequence[str]) -> int:
    """Run `glyphcrm pretrain` in this process."""
    return run_command("pretrain", arguments)


def start(arguments: Sequence[str], ranks: int = 1) -> Run:
    """Start it in processes of its own; what they say goes to a file beside the run's directory."""
    directory = Path(arguments[arguments.index("--output-dir") + 1])
    return Run(["pretrain", *arguments], directory.with_name(f"{directory.name}.log"), ranks)


def pretrain(arguments: Sequence[str], ranks: int = 1) -> tuple[int, str]:
    """Run it to its end in processes of its own; return the largest exit code, and what it has said."""
    run = start(arguments, ranks)
    assert run.wait(), run.said()
    return max(code for code in run.exit_codes if code is not None), run.said()


def command(text_file: Path, output_dir: Path, *more: str) -> list[str]:
    """Return the arguments of a nano run that is quick but has workers, dropout and several epochs."""
    return [
        *("--preset", "nano", "--data", str(text_file), "--output-dir", str(output_dir)),
        *("--steps", "12", "--batch-size", "4", "--micro-batch-size", "2", "--eval-every", "6", "--save-every", "4"),
        *("--eval-samples", "4", "--no-input-only", *more),
    ]


def environment(**more: str) -> dict[str, str]:
    """Return an environment with one thread a process, as several run at a time."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}
