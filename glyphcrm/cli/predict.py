"""`glyphcrm predict`: what a model says of texts: their labels, the names in them, or the characters behind masks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from glyphcrm.cli.arguments import add_counts_from, add_top, readable
from glyphcrm.command_line import Parser
from glyphcrm.config_file import read_config
from glyphcrm.errors import UserError
from glyphcrm.normalization import is_blank

if TYPE_CHECKING:
    from glyphcrm.answers import Answer

LONGEST = 20_000  # characters of a text: half a minute of a base model on two cores
COLOURS = (36, 33, 35, 32, 34, 31)  # of a terminal's text: cyan, yellow, magenta, green, blue, red


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `predict`; return the work that it asks for."""
    parser = Parser(
        prog=prog,
        description="Label texts, mark names, or fill masks, whichever the model does.",
        epilog="Without TEXT the lines of --file or of standard input are read. A tab separates the two texts of a "
        "pair; [MASK] or ▢ stands for a character to fill in.",
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help=f"at most {LONGEST:,} characters each")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a saved model with a head")
    parser.add_argument("--file", type=Path, metavar="FILE", help="UTF-8, a text a line")
    add_top(parser, 5, "characters for each mask")
    any_help = "fill masks with any character that the model reads, not only with those that it has learned to predict"
    parser.add_argument("--any-character", action="store_true", help=any_help)
    add_counts_from(parser, "--any-character")
    parser.add_argument("--json", action="store_true", help="print an object a line")
    arguments = parser.parse_args(words)
    if arguments.text and arguments.file:
        parser.error("give TEXT or --file, not both")
    if arguments.counts_from and not arguments.any_character:
        parser.error("--counts-from is for --any-character; give both, or leave it out")
    read_config(arguments.model)
    return partial(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    from glyphcrm.answers import load_answerer
    from glyphcrm.atlas_sources import counts_in

    counts = counts_in(arguments.counts_from)
    answer = load_answerer(arguments.model, arguments.top, arguments.any_character, counts)
    count = 0
    for where, text in _texts(arguments):
        found = answer(text, where)
        if found.note:
            print(f"{where}: {found.note}", file=sys.stderr)
        print(json.dumps(found.as_json, ensure_ascii=False) if arguments.json else _shown(found), flush=True)
        count += 1
    if not count:
        raise UserError("no text; give one as an argument, a file with --file, or lines on standard input")
    return 0


def _texts(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield where each text stands, and the text; lines without a character that is read are left out."""
    if arguments.text:
        for number, text in enumerate(arguments.text, 1):
            yield _checked(f"text {number}", readable(text, f"text {number}"))
        return
    from glyphcrm.data.text_files import lines_of, read_lines

    name = str(arguments.file or "standard input")
    if not arguments.file and sys.stdin.isatty():
        print("type texts, one a line; Ctrl-D ends", file=sys.stderr)
    lines = read_lines(arguments.file) if arguments.file else lines_of(sys.stdin.buffer, name)
    for number, line in enumerate(lines, 1):
        if not is_blank(line):
            yield _checked(f"{name}:{number}", line)


def _checked(where: str, text: str) -> tuple[str, str]:
    if not text.strip():
        raise UserError(f"{where}: is empty")
    if len(text) > LONGEST:
        raise UserError(f"{where}: more than {LONGEST:,} characters; cut it into several texts")
    return where, text


def _shown(answer: Answer) -> str:
    """Return an answer for the eyes; in colour on a terminal."""
    in_colour = sys.stdout.isatty()
    parts, end = [], 0
    for name in answer.names:
        colour = COLOURS[answer.labels.index(name.label) % len(COLOURS)]
        marked = f"\033[{colour}m{_printable(name.text)} {_printable(name.label)}\033[0m"
        parts += [_printable(answer.text[end : name.start])]
        parts += [marked if in_colour else f"[{_printable(name.text)} {_printable(name.label)}]"]
        end = name.end
    parts.append(_printable(answer.text[end:]))
    lines = ["".join(parts)]
    for choices in answer.choices:
        lines.append("  " + "  ".join(f"{_printable(label)} {share:.1%}" for label, share in choices))
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(char if char.isprintable() or char == "\t" else "·" for char in text)
