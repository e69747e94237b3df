"""The command `glyphcrm atlas`: draw an atlas, and look at one."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas, check_fonts_draw
from glyphcrm.glyphs.fonts import REGULAR_WEIGHT, font_chain, open_font
from glyphcrm.glyphs.sheet import contact_sheet, save_sheet
from glyphcrm.normalization import normalize
from glyphcrm.vocabulary import (
    DEFAULT_VOCABULARY_SIZE,
    SPECIAL_TOKENS,
    build_vocabulary,
    count_characters,
    input_only_tokens,
)

_READ_BYTES = 1 << 22


def add_atlas_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `atlas build` and `atlas show` to a command line; each sets `run` to a function of its arguments.

    Those functions return an exit code and raise `UserError`.
    """
    atlas = subparsers.add_parser("atlas", help="draw the pictures of characters, or look at them")
    commands = atlas.add_subparsers(required=True, metavar="build|show")

    build = commands.add_parser("build", help="draw an atlas from fonts")
    build.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    build.add_argument(
        "--font",
        action="append",
        default=[],
        metavar="SPEC",
        help='a font to draw with, before the default one; "FILE.ttc#NAME" for a face of a collection',
    )
    build.add_argument(
        "--weight",
        type=float,
        default=REGULAR_WEIGHT,
        metavar="N",
        help="the weight of variable fonts (default: %(default)s)",
    )
    source = build.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--characters",
        type=Path,
        metavar="FILE",
        help="the vocabulary: the file's characters, in their order",
    )
    source.add_argument(
        "--text",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="UTF-8 text; its most frequent characters are the vocabulary",
    )
    build.add_argument(
        "--vocabulary-size",
        type=int,
        default=DEFAULT_VOCABULARY_SIZE,
        metavar="N",
        help="with --text: how many tokens at most (default: %(default)s)",
    )
    build.add_argument(
        "--no-input-only",
        dest="input_only",
        action="store_false",
        help="leave out the Han characters beyond the vocabulary, which a model reads but cannot predict",
    )
    build.add_argument("--force", action="store_true", help="write over --out when it exists")
    build.set_defaults(run=build_atlas)

    show = commands.add_parser("show", help="look at the pictures of some characters")
    show.add_argument("text", metavar="TEXT")
    show.add_argument(
        "--atlas",
        type=Path,
        metavar="PATH",
        help="an atlas file, or a checkpoint directory (default: draw from the fonts)",
    )
    show.add_argument("--out", type=Path, metavar="FILE", help="write a contact sheet to this PNG file")
    show.set_defaults(run=show_characters)


def build_atlas(args: argparse.Namespace) -> int:
    """Run `glyphcrm atlas build`; print how many rows each font drew."""
    if args.out.exists() and not args.force:
        raise UserError(f"{args.out}: exists; give another --out, or --force to write over it")
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"{args.out}: its folder does not exist; make it first")
    user_fonts = [open_font(spec, weight=args.weight) for spec in args.font]
    fonts = font_chain(user_fonts)
    if args.characters is not None:
        vocabulary = _read_characters(args.characters)
    else:
        counts = count_characters(line for path in args.text for line in _read_lines(path))
        vocabulary = build_vocabulary(counts, fonts, args.vocabulary_size)
        if len(vocabulary) == len(SPECIAL_TOKENS):
            raise UserError(f"{args.text[0]}: no font has any of its characters; give text, or another --font")
    added = input_only_tokens(vocabulary, fonts) if args.input_only else []
    atlas = GlyphAtlas.build([*vocabulary, *added], fonts, progress=True)
    check_fonts_draw(user_fonts, atlas)
    atlas.save(args.out)
    print(f"{args.out}: {len(atlas):,} rows = {len(vocabulary):,} of the vocabulary + {len(added):,} input-only")
    for source, rows in Counter(atlas.sources.tolist()).most_common():
        print(f"{rows:8,} {atlas.fonts[source]}")
    return 0


def show_characters(args: argparse.Namespace) -> int:
    """Run `glyphcrm atlas show`; print the row of each character and what drew it."""
    characters = list(dict.fromkeys(normalize(args.text)))
    if not characters:
        raise UserError(f"the text {args.text!r} has no characters that are drawn")
    if args.atlas is not None:
        atlas = _load_atlas(args.atlas)
    else:
        fonts = font_chain()
        atlas = GlyphAtlas.build([c for c in characters if any(font.covers(c) for font in fonts)], fonts)
    for char in characters:
        row = atlas.rows.get(char)
        found = "no picture" if row is None else f"row {row:<6} {atlas.fonts[atlas.sources[row]]}"
        print(f"{char} U+{ord(char):04X} {found}")
    if args.out is not None:
        save_sheet(contact_sheet(characters, atlas), args.out)
        print(f"{args.out}: written")
    return 0


def _load_atlas(path: Path) -> GlyphAtlas:
    if not path.is_dir():
        return GlyphAtlas.load(path)
    from glyphcrm.checkpoint import load_atlas  # with it comes transformers, which takes seconds

    return load_atlas(path)


def _read_characters(path: Path) -> list[str]:
    """Return the special tokens and the distinct characters of a file, in order of appearance.

    Lines that are a special token are passed over, so that a list of tokens serves too.
    """
    lines = (line for line in _read_lines(path) if line not in SPECIAL_TOKENS)
    characters = dict.fromkeys(char for line in lines for char in normalize(line))
    if not characters:
        raise UserError(f"{path}: has no characters; give a UTF-8 file that lists some")
    return [*SPECIAL_TOKENS, *characters]


def _read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, without their ends."""
    try:
        with open(path, "rb") as file:
            for block in _decoded_blocks(file, path):
                yield from block.splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decoded_blocks(file: BinaryIO, path: Path) -> Iterator[str]:
    offset = 0
    while lines := file.readlines(_READ_BYTES):
        block = b"".join(lines)
        try:
            yield block.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {offset + error.start}; convert it to UTF-8 first") from error
        offset += len(block)
    if offset == 0:
        raise UserError(f"{path}: is empty; give a file with text")
