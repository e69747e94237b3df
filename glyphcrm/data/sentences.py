"""Cutting a paragraph into sentences."""

from __future__ import annotations

import re

_SENTENCE = re.compile(r"[^。！？!?；…]*[。！？!?；…]+[”’」』）】》〉〕\]\)\"']*|[^。！？!?；…]+")
_CLAUSE_MARKS = "，、：,"


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
    return [piece for sentence in sentences for piece in _cut(sentence, max_characters)]


def _cut(sentence: str, limit: int) -> list[str]:
    pieces: list[str] = []
    start = 0
    while len(sentence) - start > limit:
        end = max(sentence.rfind(mark, start, start + limit) for mark in _CLAUSE_MARKS) + 1
        if end <= start:  # no mark in this window
            end = start + limit
        pieces.append(sentence[start:end])
        start = end
    pieces.append(sentence[start:])
    return pieces
