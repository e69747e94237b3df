"""What an atlas is built from: a list of characters, text, fonts, and pictures of single characters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas, check_fonts_draw
from glyphcrm.glyphs.fonts import Font, font_chain
from glyphcrm.glyphs.picture_file import read_picture
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.vocabulary import build_vocabulary, count_characters, input_only_tokens

_CODE_POINT = re.compile("[Uu]\\+([0-9A-Fa-f]{4,6})")


def build_atlas(vocabulary: Sequence[str], user_fonts: Sequence[Font], *, input_only: bool) -> GlyphAtlas:
    """Draw a vocabulary, and with `input_only` what else a model may read, with the user's fonts before all others.

    Raises:
        UserError: no font has a character, or a font of the user's draws none.
    """
    fonts = font_chain(user_fonts)
    added = input_only_tokens(vocabulary, fonts) if input_only else []
    atlas = GlyphAtlas.build([*vocabulary, *added], fonts, progress=True)
    check_fonts_draw(user_fonts, atlas)
    return atlas


def frequent_characters(texts: Iterable[str], where: object, fonts: Sequence[Font], size: int) -> list[str]:
    """Return the special tokens and the most frequent characters of texts, at most `size` tokens.

    Raises:
        UserError: no font has any of the characters; it names `where` they stand.
    """
    vocabulary = build_vocabulary(count_characters(texts), fonts, size)
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise UserError(f"{where}: no font has any of its characters; give text, or another --font")
    return vocabulary


def listed_characters(file: Path) -> list[str]:
    """Return the special tokens and the distinct characters of a UTF-8 file, in order of appearance.

    Lines that are a special token are passed over, so that a list of tokens serves too.

    Raises:
        UserError: it cannot be read, is not UTF-8, or has no characters.
    """
    lines = (line for line in read_lines(file) if line not in SPECIAL_TOKENS)
    characters = dict.fromkeys(char for line in lines for char in normalize(line))
    if not characters:
        raise UserError(f"{file}: has no characters; give a UTF-8 file that lists some")
    return [*SPECIAL_TOKENS, *characters]


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, without their ends.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is empty.
    """
    offset = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                yield from line.decode().splitlines()
                offset += len(line)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {offset + error.start}; convert it to UTF-8 first") from error
    if offset == 0:
        raise UserError(f"{path}: is empty; give a file with text")


def read_pictures(specs: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
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
