"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from glyphcrm.errors import SHOWN_CHARACTERS, UserError
from glyphcrm.files import check_place


def add_font(parser: argparse.ArgumentParser) -> None:
    """Let a command be given fonts."""
    parser.add_argument(
        "--font",
        action="append",
        default=[],
        metavar="SPEC",
        help='a font to draw with, before the default one; "FILE.ttc#NAME" for a face of a collection. It may be given '
        "again",
    )


def add_counts_from(parser: argparse.ArgumentParser, needed: str) -> None:
    """Give the parser ``--counts-from``: text from which the model learns how frequent new characters are."""
    parser.add_argument(
        "--counts-from",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"with {needed}: UTF-8 text like what is to be filled in, a million characters or more. How often new "
        "characters stand there says how likely they are. It may be given again",
    )


def add_top(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """Let a command be told how many answers to print."""

    parser.add_argument(
        "--top", type=whole_number(1), default=default, metavar="N", help=f"{what} (default: %(default)s)"
    )


def readable(text: str, where: str) -> str:
    """Return an argument as UTF-8 has it, whatever the locale says; raise `UserError` if it is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that this locale cannot read
        from glyphcrm.data.text_files import encoding_advice  # needed here alone

        given = os.fsencode(text)
        try:
            return given.decode()
        except UnicodeDecodeError as error:
            advice = encoding_advice(given, 0, error.start)
            raise UserError(f"{where}: not UTF-8 at byte {error.start}; {advice}") from None
    return text


def whole_number(low: int, high: int = sys.maxsize) -> Callable[[str], int]:
    """Return what reads a whole number from `low` to `high`."""
    allowed = f"{low} or more" if high == sys.maxsize else f"from {low} to {high}"

    def read(word: str) -> int:
        try:
            number = int(word)
        except ValueError:  # no number, or one of thousands of digits
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{word[:SHOWN_CHARACTERS]}; give a whole number, {allowed}")
        return number

    return read


def check_new(out: Path) -> None:
    """Raise `UserError` if the directory `out` has something in it, or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty; name a new directory")
    check_place(out)
