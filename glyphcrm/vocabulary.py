"""Which tokens a model has: the special ones, the characters it can predict, and those it only reads."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from glyphcrm.errors import UserError
from glyphcrm.glyphs.font_file import Font
from glyphcrm.glyphs.han import is_han
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS

DEFAULT_VOCABULARY_SIZE = 18_612

_BLOCK_CHARACTERS = 1 << 20
_CODE_POINTS = 0x110000


def count_characters(texts: Iterable[str]) -> dict[str, int]:
    """Count the characters of `normalize(text)` over all `texts`, by code point."""
    counts = np.zeros(_CODE_POINTS, np.int64)
    for block in _blocks(map(normalize, texts)):
        block_counts = np.bincount(np.frombuffer(block.encode("utf-32-le", "surrogatepass"), "<u4"))
        counts[: len(block_counts)] += block_counts
    return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def build_vocabulary(
    counts: Mapping[str, int], fonts: Sequence[Font], size: int = DEFAULT_VOCABULARY_SIZE
) -> list[str]:
    """Return the special tokens, then the most frequent characters that one of `fonts` has.

    At most `size` tokens; characters of equal counts stand in code point order. `counts` is what
    `count_characters` returns. Raises `UserError` when `size` leaves no room for a character.
    """
    room = size - len(SPECIAL_TOKENS)
    if room < 1:
        raise UserError(
            f"a vocabulary of {size} tokens has no room for a character beside the {len(SPECIAL_TOKENS)} "
            f"special tokens; give {len(SPECIAL_TOKENS) + 1} or more"
        )
    by_frequency = sorted(counts, key=lambda char: (-counts[char], char))
    drawable = (char for char in by_frequency if any(font.covers(char) for font in fonts))
    return [*SPECIAL_TOKENS, *itertools.islice(drawable, room)]


def input_only_tokens(vocabulary: Iterable[str], fonts: Sequence[Font]) -> list[str]:
    """Return every character of `fonts` that a text can hold and that is not in `vocabulary`, in code point order.

    That is whatever the fonts have in their character maps: Han, and as well radicals and compatibility forms (as ⼈,
    ㈱, ㎡: rows of their own beside the ideographs they look like), kana, bopomofo, punctuation, symbols, letters. Left
    out are characters that normalisation drops or turns into others, and what Unicode gives no meaning: private use,
    and code points that are not assigned in this Python's version of Unicode, unless in a block of Han. So are those
    that only a font found on this machine has (`Font.system`), so that an atlas does not depend on the machine it is
    built on.
    """
    points = set().union(*(font.coverage for font in fonts if not font.system))
    readable = {chr(point) for point in points if is_han(point) or _has_meaning(chr(point))}
    return sorted(char for char in readable.difference(vocabulary) if normalize(char) == char)


def _has_meaning(char: str) -> bool:
    return unicodedata.category(char) not in ("Cn", "Co", "Cs")


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """Join texts to blocks of about a million characters."""
    block: list[str] = []
    characters = 0
    for text in texts:
        block.append(text)
        characters += len(text)
        if characters >= _BLOCK_CHARACTERS:
            yield "".join(block)
            block, characters = [], 0
    yield "".join(block)
