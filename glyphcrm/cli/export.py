"""`glyphcrm export`: a saved model as one file for other runtimes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from glyphcrm.command_line import Parser
from glyphcrm.config_file import read_config
from glyphcrm.errors import UserError
from glyphcrm.files import check_place


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `export`; return the work that it asks for."""
    parser = Parser(
        prog=prog,
        description="Write a saved model as ONNX, which runs without this package.",
        epilog="Inputs are input_ids, attention_mask and token_type_ids, (batch, length) int64, both sizes free.",
    )
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="a saved model, with a head or without"
    )
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="the file to write")
    arguments = parser.parse_args(words)
    read_config(arguments.model, ("GlyphCRM",))
    file = arguments.onnx
    if file.is_dir() or not file.parent.is_dir():
        raise UserError(f"{file}: {'is a directory' if file.is_dir() else 'there is no such folder'}; name a file")
    if file.suffix.lower() != ".onnx":  # it may be a mistake for another file, which would be written over
        raise UserError(f"{file}: no name of an ONNX file; give one that ends in .onnx")
    check_place(file)
    return partial(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    from glyphcrm.conversion.onnx import export_onnx

    outputs = export_onnx(arguments.model, arguments.onnx)
    size = arguments.onnx.stat().st_size
    print(f"{arguments.onnx}: {size / 1e6:.1f} MB, outputs {', '.join(outputs)}")
    return 0
