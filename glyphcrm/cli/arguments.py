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


def refuse_used(out: Path) -> None:
    """Raise `UserError` if the directory `out` has something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty; name a new directory")
