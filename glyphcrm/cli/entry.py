"""The `glyphcrm` command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import transformers

from glyphcrm.cli.atlas import add_atlas_parser
from glyphcrm.cli.convert import add_conversion_parsers
from glyphcrm.errors import exit_on_user_error
from glyphcrm.reproduce.options import add_reproduce_parser


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    """Run `glyphcrm atlas|convert-release|convert-bert|convert-half|reproduce`; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="glyphcrm", description="Glyph atlases, checkpoints, the paper's experiments."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    add_atlas_parser(subparsers)
    add_conversion_parsers(subparsers)
    add_reproduce_parser(subparsers)
    parsed = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    result: int = parsed.run(parsed)
    return result
