"""Which tokens a model has: the special ones, the characters it can predict, and those it only reads."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from glyphcrm.errors import UserError
from glyphcrm.glyphs.fonts import Font
from glyphcrm.glyphs.han import is_han
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS

DEFAULT_VOCABULARY_SIZE = 18_612


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """Count the characters of `normalize(text)` over all `texts`."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalize(text))
    return counts


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
    """Return every Han and ASCII character of `fonts` that is not in `vocabulary`, in code point order.

    ASCII, since a text may have full-width letters alone. Characters that normalisation turns into others are left out,
    and those that only a font found on this machine has (`Font.system`), on which an atlas must not depend.
    """
    points = set().union(*(font.coverage for font in fonts if not font.system))
    readable = {chr(point) for point in points if is_han(point) or point < 0x80}
    return sorted(char for char in readable.difference(vocabulary) if normalize(char) == char)
