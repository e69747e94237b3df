"""What an atlas is built from: a list of characters, text, fonts, and pictures of single characters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glyphcrm.data.text_files import read_lines
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.font_file import Font
from glyphcrm.glyphs.picture_file import read_picture
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.vocabulary import build_vocabulary, count_characters, input_only_tokens

_CODE_POINT = re.compile("[Uu]\\+([0-9A-Fa-f]{4,6})")


def with_input_only(vocabulary: GlyphAtlas, fonts: Sequence[Font]) -> GlyphAtlas:
    """Return the atlas of a vocabulary with rows added for what else the fonts draw, which a model only reads."""
    characters = input_only_tokens(vocabulary.tokens, fonts)
    # Those that only this machine's own fonts have ink for are left out, too.
    portable = [font for font in fonts if not font.system]
    return vocabulary.extended(GlyphAtlas.build(characters, portable, leave_out=True, progress=True))


def frequent_characters(counts: Mapping[str, int], where: object, fonts: Sequence[Font], size: int) -> GlyphAtlas:
    """Draw the special tokens and the most frequent of the counted characters, at most `size` tokens.

    Characters that no font draws are left out.

    Raises:
        UserError: no font draws any of the characters; it names `where` they stand.
    """
    vocabulary = build_vocabulary(counts, fonts, size)
    specials = GlyphAtlas.build(SPECIAL_TOKENS, fonts)
    characters = vocabulary[len(SPECIAL_TOKENS) :]
    drawn = specials.extended(GlyphAtlas.build(characters, fonts, leave_out=True, progress=True))
    if len(drawn) == len(specials):
        raise UserError(f"{where}: no font has any of its characters; give text, or another --font")
    return drawn


def listed_characters(file: Path, fonts: Sequence[Font]) -> GlyphAtlas:
    """Draw the special tokens and the distinct characters of a UTF-8 file, in order of appearance.

    Lines that are a special token are passed over, so that a list of tokens serves too.

    Raises:
        UserError: it cannot be read, is not UTF-8, or has no characters, or no font draws one of them.
    """
    lines = (line for line in lines_of(file) if line not in SPECIAL_TOKENS)
    characters = dict.fromkeys(char for line in lines for char in normalize(line))
    if not characters:
        raise UserError(f"{file}: has no characters; give a UTF-8 file that lists some")
    return GlyphAtlas.build([*SPECIAL_TOKENS, *characters], fonts, progress=True)


def lines_of(file: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, compressed or not.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is empty.
    """
    line = None
    for line in read_lines(file):
        yield line
    if line is None:
        raise UserError(f"{file}: is empty; give a file with text")


def counts_in(files: Sequence[Path]) -> dict[str, int] | None:
    """Return how often each character stands in UTF-8 files, as `lines_of` reads them; None of no file."""
    return count_characters(line for file in files for line in lines_of(file)) if files else None


def look_alikes_note(atlas: GlyphAtlas, first: int = 0) -> str | None:
    """Return a line about the characters that share a picture with one in row `first` or behind; None if none do."""
    groups = [group for group in atlas.look_alikes() if atlas.rows[group[-1]] >= first]
    if not groups:
        return None
    count, (one, other) = sum(map(len, groups)), groups[0][:2]
    return f"{count:,} characters share a picture with another, which a model cannot tell apart (first: " + (
        f"{named(one)} and {named(other)})"
    )


def read_pictures(specs: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
    """Read "CHARACTER=FILE" and "U+XXXX=FILE": character -> packed picture.

    Raises:
        UserError: a text of another form, a character twice or that no text holds, or a file without a picture.
    """
    pictures: dict[str, NDArray[np.uint8]] = {}
    for spec in specs:
        name, _, file = spec.partition("=")
        code_point = _CODE_POINT.fullmatch(name)
        point = int(code_point[1], 16) if code_point else ord(name) if len(name) == 1 else None
        if not file or point is None or point > 0x10FFFF:
            raise UserError(f"--png {spec}: give one character, =, and a file; or its code point, as U+20BB7=FILE")
        char = chr(point)
        if normalize(char) != char:
            raise UserError(f"--png {spec}: texts never hold {named(char)} after normalisation; give another character")
        if char in pictures:
            raise UserError(f"--png {spec}: {named(char)} has a picture already; give one")
        pictures[char] = read_picture(Path(file))
    return pictures


def named(char: str) -> str:
    """Return a character and its code point."""
    return f"{char} U+{ord(char):04X}"
