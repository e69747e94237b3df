"""Arguments of the benches that argparse refuses in a line, with exit code 2."""

from __future__ import annotations

import math
import os
from argparse import ArgumentTypeError
from pathlib import Path


def minutes(text: str) -> float:
    """Return a time of more than 0 minutes."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return number


def new_file(text: str) -> Path:
    """Return where a file can be written, or an earlier one replaced."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(f"{text!r} cannot be written; name a file in a folder that is there")
    return path


def shape(text: str) -> str:
    """Return sequences x tokens as they are, both positive: 32x512."""
    numbers = text.split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ArgumentTypeError(f"{text!r} is not SEQUENCESxTOKENS, as in 32x512")
    return text
