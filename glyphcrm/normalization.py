"""What becomes of raw text before it is looked up: NFC, and nothing that cannot be drawn.

The rules, for the tokenizer, the vocabulary and the pre-training data alike:

* Unicode NFC. CJK compatibility ideographs (U+F900 ff.) become the unified ones, as NFC demands.
* Dropped: white space and line ends (CR, LF, U+3000 too), control characters, and characters of
  zero width: format characters (U+200B, U+FEFF, U+00AD, ...) and variation selectors.
* Kept: everything else. Full-width forms stay full-width, letters keep their case.
"""

from __future__ import annotations

import unicodedata

VARIATION_SELECTORS = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))


def is_dropped(char: str) -> bool:
    """Whether `char` (one code point) is white space, a control, or of zero width."""
    if char.isspace() or unicodedata.category(char) in ("Cc", "Cf"):
        return True
    return any(ord(char) in selectors for selectors in VARIATION_SELECTORS)


class _DropTable(dict[int, int | None]):
    """A table for `str.translate` that decides about each code point once, when it is met."""

    def __missing__(self, point: int) -> int | None:
        self[point] = None if is_dropped(chr(point)) else point
        return self[point]


_DROP_TABLE = _DropTable()


def normalize(text: str) -> str:
    """Return `text` without the characters that `is_dropped` names, in NFC.

    Doing it twice is doing it once. Dropping comes first: it can bring a letter and its accent together.
    """
    return unicodedata.normalize("NFC", text.translate(_DROP_TABLE))


def is_blank(text: str) -> bool:
    """Whether `normalize(text)` is empty; reads no further than the first character that stays."""
    for char in text:  # noqa: SIM110 (the start of a generator takes longer than this)
        if _DROP_TABLE[ord(char)] is not None:
            return False
    return True


def normalize_with_offsets(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return `normalize(text)` and, for each of its characters, where it came from.

    The offsets are half-open ranges of code points of `text`. Characters that NFC composed or
    reordered together share the range of the whole cluster.
    """
    kept = [i for i, char in enumerate(text) if not is_dropped(char)]
    clean = "".join(text[i] for i in kept)
    characters: list[str] = []
    offsets: list[tuple[int, int]] = []
    for start, end in _clusters(clean):
        composed = unicodedata.normalize("NFC", clean[start:end])
        characters.append(composed)
        offsets.extend([(kept[start], kept[end - 1] + 1)] * len(composed))
    return "".join(characters), offsets


def _clusters(text: str) -> list[tuple[int, int]]:
    """Cut `text` into ranges that NFC treats independently of each other."""
    if unicodedata.is_normalized("NFC", text):
        return [(i, i + 1) for i in range(len(text))]
    clusters: list[tuple[int, int]] = []
    start, composed = 0, ""
    for i, char in enumerate(text):
        alone = unicodedata.normalize("NFC", char)
        joined = unicodedata.normalize("NFC", text[start : i + 1])
        if i > start and unicodedata.combining(char) == 0 and joined == composed + alone:
            clusters.append((start, i))
            start, composed = i, alone
        else:
            composed = joined
    if text:
        clusters.append((start, len(text)))
    return clusters
