"""Text without the sentences that hold certain characters, so that a model trained on it has never seen them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from glyphcrm.data.sentences import split_sentences
from glyphcrm.data.text_files import read_lines
from glyphcrm.errors import UserError
from glyphcrm.normalization import is_blank, normalize


def read_characters(path: Path) -> frozenset[str]:
    """Return the characters of a UTF-8 file, in any arrangement; raise `UserError` if it cannot be read or has none."""
    characters = frozenset(char for line in read_lines(path) for char in normalize(line))
    if not characters:
        raise UserError(f"{path}: no character there; give at least one")
    return characters


def without(documents: Iterable[list[str]], excluded: frozenset[str]) -> Iterator[list[str]]:
    """Yield the documents, lists of paragraphs, without every sentence that holds an excluded character.

    Characters are compared after normalisation. A paragraph or document of which nothing is left is left out.
    """
    for document in documents:
        split = (split_sentences(paragraph, max(len(paragraph), 1)) for paragraph in document)
        paragraphs = ("".join(s for s in sentences if excluded.isdisjoint(normalize(s))) for sentences in split)
        if kept := [paragraph for paragraph in paragraphs if not is_blank(paragraph)]:
            yield kept
