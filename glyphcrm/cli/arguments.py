"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from glyphcrm.errors import UserError


def add_font(parser: argparse.ArgumentParser) -> None:
    """Let a command be given fonts."""
    parser.add_argument(
        "--font",
        action="append",
        default=[],
        metavar="SPEC",
        help='a font to draw with, before the default one; "FILE.ttc#NAME" for a face of a collection',
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

    def number(word: str) -> int:
        if not word.isdecimal() or int(word) < 1:
            raise argparse.ArgumentTypeError(f"{word}; give a whole number, 1 or more")
        return int(word)

    parser.add_argument("--top", type=number, default=default, metavar="N", help=f"{what} (default: %(default)s)")


def refuse_used(out: Path) -> None:
    """Raise `UserError` if the directory `out` has something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty; name a new directory")
