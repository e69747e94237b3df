"""The command `glyphcrm atlas`: draw an atlas, look at one, add characters to a model's, and encode it."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas, check_fonts_draw
from glyphcrm.glyphs.fonts import REGULAR_WEIGHT, font_chain, open_font
from glyphcrm.glyphs.picture_file import PICTURE_SOURCE, read_picture
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
_CODE_POINT = re.compile("[Uu]\\+([0-9A-Fa-f]{4,6})")


def add_atlas_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `atlas build`, `show`, `add` and `encode` to a command line; each sets `run` to a function of its arguments.

    Those functions return an exit code and raise `UserError`.
    """
    atlas = subparsers.add_parser("atlas", help="draw the pictures of characters, look at them, or add some to a model")
    commands = atlas.add_subparsers(required=True, metavar="build|show|add|encode")

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

    add = commands.add_parser("add", help="let a trained model read more characters: a copy of it with rows added")
    add.add_argument("characters", metavar="CHARACTERS", nargs="?", default="", help="those that fonts are to draw")
    add.add_argument("--model", type=Path, required=True, metavar="DIR", help="a checkpoint directory, of any head")
    add.add_argument("--out", type=Path, required=True, metavar="DIR", help="the checkpoint directory to write")
    add.add_argument(
        "--font",
        action="append",
        default=[],
        metavar="SPEC",
        help='a font to draw with, before the default one; "FILE.ttc#NAME" for a face of a collection',
    )
    add.add_argument(
        "--png",
        action="append",
        default=[],
        metavar="CHARACTER=FILE",
        help="the picture of one more character, dark on light; U+20BB7=FILE does, too",
    )
    add.set_defaults(run=add_characters)

    encode = commands.add_parser("encode", help="keep the vectors of all characters beside a model, for inference")
    encode.add_argument("--model", type=Path, required=True, metavar="DIR", help="a checkpoint directory, of any head")
    encode.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of the vectors (default: %(default)s)"
    )
    encode.set_defaults(run=encode_characters)


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
        print(f"{_named(char)} {found}")
    if args.out is not None:
        save_sheet(contact_sheet(characters, atlas), args.out)
        print(f"{args.out}: written")
    return 0


def add_characters(args: argparse.Namespace) -> int:
    """Run `glyphcrm atlas add`; print the new rows and what drew them."""
    characters = list(dict.fromkeys(normalize(args.characters)))
    pictures = _read_pictures(args.png)
    if not characters and not pictures:
        raise UserError("no character to add was given; give CHARACTERS, or --png CHARACTER=FILE")
    if twice := pictures.keys() & characters:
        raise UserError(f"{_named(min(twice))} is to be drawn by a font and by --png; give it once")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"--out {args.out} exists and is not empty; name a new directory")
    user_fonts = [open_font(spec) for spec in args.font]

    from glyphcrm.extension import load_as_saved, save_extended  # with it comes transformers, which takes seconds

    model, atlas = load_as_saved(args.model)
    if known := [char for char in (*characters, *pictures) if char in atlas.rows]:
        raise UserError(f"{args.model}: reads {_named(known[0])} already; leave it out")
    drawn = GlyphAtlas.build(characters, font_chain(user_fonts))
    check_fonts_draw(user_fonts, drawn)
    extended = atlas.extended(drawn)
    if pictures:
        extended = extended.append(tuple(pictures), np.stack(list(pictures.values())), PICTURE_SOURCE)
    save_extended(model, extended, args.out)
    print(f"{args.out}: {len(extended):,} rows = {len(atlas):,} of {args.model} + {len(extended) - len(atlas):,} new")
    for row in range(len(atlas), len(extended)):
        print(f"{_named(extended.tokens[row])} row {row:<6} {extended.fonts[extended.sources[row]]}")
    return 0


def encode_characters(args: argparse.Namespace) -> int:
    """Run `glyphcrm atlas encode`; print what was written."""
    import torch  # with transformers, it takes seconds

    from glyphcrm.extension import load_as_saved
    from glyphcrm.modeling.glyph_vectors import DTYPES, VECTORS_FILE, save_vectors

    # Without the cache, as a file that is there is about to be replaced.
    model, atlas = load_as_saved(args.model, glyph_cache=False, dtype=torch.float32)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    base = model.glyph_model.to(device)  # type: ignore[arg-type]
    path = args.model / VECTORS_FILE
    save_vectors(path, base.hanglyph, base.glyph_table.bitmaps, DTYPES[args.dtype])
    print(f"{path}: {len(atlas):,} rows, {args.dtype}, {path.stat().st_size / 1e6:,.0f} MB")
    return 0


def _read_pictures(specs: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Read "CHARACTER=FILE" and "U+XXXX=FILE": character -> packed picture."""
    pictures: dict[str, NDArray[np.uint8]] = {}
    for spec in specs:
        name, _, file = spec.partition("=")
        code_point = _CODE_POINT.fullmatch(name)
        point = int(code_point[1], 16) if code_point else ord(name) if len(name) == 1 else None
        if not file or point is None or point > 0x10FFFF:
            raise UserError(f"--png {spec}: give one character, =, and a file; or its code point, as U+20BB7=FILE")
        char = chr(point)
        if normalize(char) != char:
            raise UserError(
                f"--png {spec}: texts never hold {_named(char)} after normalisation; give another character"
            )
        if char in pictures:
            raise UserError(f"--png {spec}: {_named(char)} has a picture already; give one")
        pictures[char] = read_picture(Path(file))
    return pictures


def _named(char: str) -> str:
    return f"{char} U+{ord(char):04X}"


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
