"""The table of the public surfaces.

A surface takes a seeded generator and an empty directory, writes a malformed input there, and returns the case.
"""

from __future__ import annotations

from functools import partial

from tests.robustness.file_surfaces import font, fonts, picture, task, text
from tests.robustness.material import whole_task
from tests.robustness.model_surfaces import checkpoint, configuration, release, string, tokenizer, tokenizer_files
from tests.robustness.run_surfaces import (
    command_line,
    finished_weights,
    prepared_data,
    run_directory,
    run_records,
    undamaged,
)
from tests.robustness.runner import Surface

# Name -> surface, and how many inputs of it the long and the short test give.
SURFACES: dict[str, tuple[Surface, int, int]] = {
    "text": (text, 600, 40),
    "task": (task, 1000, 40),
    "font": (font, 400, 20),
    "picture": (picture, 500, 20),
    "tokenizer files": (tokenizer_files, 1000, 40),
    "string": (string, 8000, 300),
    "glyphcrm checkpoint": (partial(checkpoint, "glyphcrm"), 800, 40),
    "bert checkpoint": (partial(checkpoint, "bert"), 400, 30),
    "configuration": (configuration, 3000, 300),
    "release": (release, 500, 30),
    "run records": (run_records, 1500, 50),
    "run directory": (run_directory, 200, 10),
    "prepared data": (prepared_data, 800, 40),
    "command line": (command_line, 1500, 60),
}


def prepare() -> None:
    """Make what several cases share, before a process forks."""
    fonts()
    tokenizer()
    whole_task()
    undamaged()
    finished_weights()
