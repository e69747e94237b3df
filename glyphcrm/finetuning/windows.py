"""Cutting a sentence to tag that a model cannot read at once."""

from __future__ import annotations

from collections.abc import Sequence

SENTENCE_ENDS = frozenset("。！？!?；;…")
CLAUSE_ENDS = frozenset("，、：,")


def windows(characters: Sequence[str], limit: int, sizes: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Return ranges (start, end) of characters, none larger than `limit` tokens; joined they are the sentence.

    A sentence that fits is one window. Else each window ends after the last sentence end (。！？!?；;…) that fits,
    without one after the last clause end (，、：,), without one anywhere.

    Args:
        characters: of the sentence.
        limit: tokens a window, 1 or more.
        sizes: tokens of each character; default 1 each. A single one that is larger than `limit` is a window.
    """
    sizes = [1] * len(characters) if sizes is None else sizes
    ranges: list[tuple[int, int]] = []
    start = 0
    while start < len(characters):
        end, tokens = start, 0
        while end < len(characters) and (tokens + sizes[end] <= limit or end == start):
            tokens += sizes[end]
            end += 1
        if end < len(characters):
            end = _last(characters, SENTENCE_ENDS, start, end) or _last(characters, CLAUSE_ENDS, start, end) or end
        ranges.append((start, end))
        start = end
    return ranges


def _last(characters: Sequence[str], marks: frozenset[str], start: int, end: int) -> int | None:
    """Return the position after the last of `marks` in [start, end)."""
    return next((i + 1 for i in range(end - 1, start - 1, -1) if characters[i] in marks), None)
