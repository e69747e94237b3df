"""How the tests run pretrain.py: a nano command line, one thread a process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from glyphcrm.cli.entry import run_command

REPOSITORY = Path(__file__).parents[2]


def main(arguments: Sequence[str]) -> int:
    """Run `glyphcrm pretrain` in this process."""
    return run_command("pretrain", arguments)


Pretrain = Callable[..., subprocess.CompletedProcess[str]]


def command(text_file: Path, output_dir: Path, *more: str) -> list[str]:
    """Return the arguments of a nano run that is quick but has workers, dropout and several epochs."""
    return [
        *("--preset", "nano", "--data", str(text_file), "--output-dir", str(output_dir)),
        *(
            "--steps",
            "12",
            "--batch-size",
            "4",
            "--micro-batch-size",
            "2",
            "--eval-every",
            "6",
            "--save-every",
            "4",
        ),
        *("--eval-samples", "4", "--no-input-only", *more),
    ]


def environment(**more: str) -> dict[str, str]:
    """Return an environment with one thread a process, as several run at a time."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}
