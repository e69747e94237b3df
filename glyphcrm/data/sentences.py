"""Where text is cut: paragraphs into sentences, and what is too long for a model into pieces."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

SENTENCE_ENDS = "。！？!?；…"
CLOSING = r"”’」』）】》〉〕\]\)\"'"  # stay with the sentence before them
CLAUSE_ENDS = "，、：,"

_SENTENCE = re.compile(rf"[^{SENTENCE_ENDS}]*[{SENTENCE_ENDS}]+[{CLOSING}]*|[^{SENTENCE_ENDS}]+")


def split_sentences(paragraph: str, max_characters: int) -> list[str]:
    """Cut `paragraph` after 。！？!?；… and the closing quotes or brackets that follow them.

    A sentence longer than `max_characters` is cut after the last clause mark (，、：,) that lets
    the piece fit, or else at the limit. The pieces are never empty, and joined they are `paragraph`.

    Raises `ValueError` if `max_characters` is less than 1.
    """
    if max_characters < 1:
        raise ValueError(f"max_characters is {max_characters}, and must be at least 1")
    sentences: list[str] = _SENTENCE.findall(paragraph)
    if all(len(sentence) <= max_characters for sentence in sentences):
        return sentences
    return [
        sentence[start:end]
        for sentence in sentences
        for start, end in windows(sentence, max_characters, ends=(CLAUSE_ENDS,))
    ]


def windows(
    characters: Sequence[str],
    limit: int,
    sizes: Sequence[int] | None = None,
    ends: Sequence[str] = (SENTENCE_ENDS + ";", CLAUSE_ENDS),
) -> list[tuple[int, int]]:
    """Return ranges (start, end) of characters, none larger than `limit` tokens; joined they are the whole.

    What fits is one window. Else each window ends after the last of the first kind of marks (`ends`) that fits, without
    one after the last of the next kind, without one anywhere. `sizes` are the tokens of each character, by default 1; a
    single one that is larger than `limit` is a window.
    """
    total = range(len(characters) + 1) if sizes is None else list(accumulate(sizes, initial=0))
    ranges: list[tuple[int, int]] = []
    start = 0
    while start < len(characters):
        end = max(bisect_right(total, total[start] + limit) - 1, start + 1)
        if end < len(characters):
            end = next((i for marks in ends for i in range(end, start, -1) if characters[i - 1] in marks), end)
        ranges.append((start, end))
        start = end
    return ranges
