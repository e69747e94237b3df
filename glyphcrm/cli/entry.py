"""The `glyphcrm` command: a table of its commands, each imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from glyphcrm.errors import exit_code_of
from glyphcrm.version import __version__

# Name -> where its command line is read, and what it does.
COMMANDS = {
    "pretrain": ("training:parse_pretrain", "pre-train GlyphCRM, or a BERT to compare it with, on text"),
    "tokenize": ("training:parse_tokenize", "make text into the tokens that pretrain reads, as a whole or in parts"),
    "finetune": ("training:parse_finetune", "fine-tune a GlyphCRM or a BERT on a task"),
    "predict": ("predict:parse", "label texts, mark the names in them, or fill masks"),
    "web": ("web:parse", "a page on this machine that shows what the models do"),
    "atlas": ("atlas:parse", "draw the pictures of characters, look at them, find look-alikes, or add some to a model"),
    "convert-release": ("convert:parse_release", "convert a checkpoint of the authors' release"),
    "convert-bert": ("convert:parse_bert", "warm-start from a transformers BERT directory"),
    "convert-half": ("convert:parse_half", "store a checkpoint's weights in float16"),
    "export": ("export:parse", "write a model as ONNX, for other runtimes"),
    "reproduce": (
        "training:parse_reproduce",
        "pre-train GlyphCRM and BERT, fine-tune both on every task, write RESULTS.md",
    ),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that `words` (default: this process's) begin with; return the exit code."""
    prepare_streams()
    words = sys.argv[1:] if words is None else list(words)
    if words and words[0] in COMMANDS:
        return run_command(words[0], words[1:], f"glyphcrm {words[0]}")
    parser = argparse.ArgumentParser(
        prog="glyphcrm", description="Training, glyph atlases, checkpoints, the paper's experiments."
    )
    parser.add_argument("--version", action="version", version=f"glyphcrm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, help) in COMMANDS.items():
        commands.add_parser(name, help=help)
    parser.parse_args(words)  # prints help or version, or names what is wrong
    parser.error("the command comes first")


def run_command(name: str, words: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run one command on `words` and return its exit code, see `exit_code_of`.

    Args:
        name: one of `COMMANDS`.
        words: its command line; default: this process's.
        prog: what its usage calls it; default: this program.
    """
    prepare_streams()
    module, _, parse = COMMANDS[name][0].partition(":")

    def parse_and_run() -> int:
        run = getattr(importlib.import_module(f"glyphcrm.cli.{module}"), parse)(words, prog)
        import transformers  # not before: --help need not wait for it

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        exit_code: int = run()
        return exit_code

    return exit_code_of(parse_and_run)


def prepare_streams() -> None:
    r"""Let a terminal that lacks a character, such as one of GBK or ASCII, show its code (\u9f98), not end a run.

    What was closed (`>&-`, a daemon) is opened as /dev/null, else the next file would have its number, and its output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it takes the lowest number that is free)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
