"""File formats to examples. Every example knows its file and line, and so does every complaint.

UTF-8, with or without a byte order mark; lines end in LF or CR LF; blank lines are skipped. Labels and tags are
normalised (`normalize_label`), so that none differs from another by what cannot be seen.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from glyphcrm.data.text_files import DOCUMENT_LIMIT, checked_text, read_json_objects, read_lines
from glyphcrm.errors import UserError, listed, shown
from glyphcrm.normalization import is_blank, normalize, normalize_label
from glyphcrm.tasks.examples import Spelling, TaggedExample, TextExample

E = TypeVar("E")

BIO_TAG = re.compile(r"O|[BI]-\S+")
_BIO_FORMAT = "each line holds a character, a tab and its tag (O, B-x or I-x)"


@dataclass(frozen=True)
class Columns:
    """Where the text, the label and the second text of a pair stand: all names, or all numbers from 0.

    Names are looked up in the first line, the header; a file with numbered columns has no header.
    """

    text: str | int
    label: str | int
    pair: str | int | None = None

    @property
    def used(self) -> tuple[str | int, ...]:
        """The columns that are read."""
        return (self.text, self.label) if self.pair is None else (self.text, self.label, self.pair)


def read_columns(
    path: Path, columns: Columns, labels: Mapping[str, str] | None = None, separator: str = "\t"
) -> list[TextExample]:
    """Read a row a line, its columns between `separator`; nothing is quoted: `"` is a character.

    `labels` gives each label of the file its name, and allows no others; None keeps those of the file.

    Raises `UserError`: the file cannot be read or is not UTF-8, a column or key is missing, a row has more or fewer
    columns than the first, a text is empty, or a label is empty or unknown.
    """
    rows = (
        (number, line.split(separator)) for number, line in enumerate(read_lines(path), start=1) if not is_blank(line)
    )
    return _table(path, rows, columns, labels, "tabs" if separator == "\t" else f"'{separator}'")


def read_csv(path: Path, columns: Columns, labels: Mapping[str, str] | None = None) -> list[TextExample]:
    """Read comma-separated values with quoting; a field may hold line ends; `labels` as for `read_columns`.

    Raises `UserError`: as `read_columns`, and for quotes that are broken or never closed.
    """
    return _table(path, _csv_rows(path), columns, labels, "commas")


def read_json_lines(path: Path, columns: Columns, labels: Mapping[str, str] | None = None) -> list[TextExample]:
    """Read a JSON object a line; the columns are its keys, and other keys are ignored; `labels` as for `read_columns`.

    A label may be a string or an integer.

    Raises `UserError`: as `read_columns`, and for a line that is no JSON object, or a value of another type.
    """
    rows = read_json_objects(path, columns.used)
    return _some(path, [_example(at, [_json_field(at, row, key) for key in columns.used], labels) for at, row in rows])


def read_bio(path: Path) -> list[TaggedExample]:
    """Read a character, a tab or space, and its tag a line, with a blank line between sentences.

    In place of a character may stand several (a number, a word, an emoji with its modifier), with a tab behind them if
    one is a space. A line of characters of zero width is blank.

    Raises `UserError`: the file cannot be read or is not UTF-8, a line does not hold characters and one BIO tag, or
    there is no sentence.
    """
    # Of millions of lines a few thousand differ: each is looked at once.
    known: dict[str, tuple[str, str, Spelling | None]] = {}
    examples: list[TaggedExample] = []
    sentence: list[tuple[str, str, Spelling | None]] = []
    for number, line in enumerate(itertools.chain(read_lines(path), [""]), start=1):
        found = known.get(line)
        if found is None and not is_blank(line):
            found = known[line] = _tagged_characters(path, number, line)
        if found is not None:
            sentence.append(found)
        elif sentence:
            characters, tags, respelled = zip(*sentence, strict=True)
            spellings = tuple(dict.fromkeys(filter(None, respelled)))
            examples.append(TaggedExample(characters, tags, f"{path}:{number - len(sentence)}", spellings))
            sentence = []
    return _some(path, examples)


def _table(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    columns: Columns,
    labels: Mapping[str, str] | None,
    separated_by: str,
) -> list[TextExample]:
    number, first = next(rows, (1, []))
    if not first:
        raise UserError(f"{path}: no rows; give one text a line")
    indices = _indices(f"{path}:{number}", first, columns, separated_by)
    if isinstance(columns.text, int):  # no header: the first row is an example
        rows = itertools.chain([(number, first)], rows)
    examples = []
    for number, row in rows:
        where = f"{path}:{number}"
        if len(row) != len(first):
            raise UserError(
                f"{where}: {_columns_of(row)}, expected {len(first)} separated by {separated_by} as in the first line; "
                f"the line begins with {shown(row[0])}"
            )
        examples.append(_example(where, [row[i] for i in indices], labels))
    return _some(path, examples)


def _indices(where: str, first: list[str], columns: Columns, separated_by: str) -> list[int]:
    names = [name.strip() for name in first]
    for column in columns.used:
        if isinstance(column, str) and column not in names:
            raise UserError(
                f"{where}: {_columns_of(first)} separated by {separated_by}, and none is named {shown(column)}; "
                f"expected a header with {listed(columns.used)}, found {listed(first)}"
            )
        if isinstance(column, int) and column >= len(first):
            raise UserError(
                f"{where}: {_columns_of(first)}, expected at least {column + 1} separated by {separated_by}; "
                f"the line begins with {shown(first[0])}"
            )
    return [names.index(column) if isinstance(column, str) else column for column in columns.used]


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), DOCUMENT_LIMIT))
    # strict: text after a closing quote, or a quote that is never closed, is an error.
    reader = csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    number = 1
    try:
        for row in reader:
            if len(row) > 1 or (row and not is_blank(row[0])):
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{number}: not comma-separated values: {error}; a quote inside quotes is doubled"
        ) from None


def _json_field(where: str, row: dict[str, object], key: str | int) -> str:
    if key not in row:
        raise UserError(f"{where}: no key {shown(str(key))}; the keys are {listed(row) or 'none'}")
    value = row[str(key)]
    return str(value) if type(value) is int else checked_text(value, f"{where}: {shown(str(key))}")


def _example(where: str, fields: Sequence[str], labels: Mapping[str, str] | None) -> TextExample:
    text, label, *pair = fields
    for content in (text, *pair):
        # What nothing is left of after normalisation would reach a model as nothing at all.
        if not normalize(content):
            raise UserError(f"{where}: empty text; take the line out, or give it a text")
    label, spelling = _label(label)
    if not label:
        raise UserError(f"{where}: empty label; take the line out, or give it a label")
    if labels is not None:
        if label not in labels:
            raise UserError(f"{where}: unknown label {shown(label)}; known are {listed(labels)}")
        label = labels[label]
    return TextExample(text, label, pair[0] if pair else None, where, (spelling,) if spelling else ())


def _label(written: str) -> tuple[str, Spelling | None]:
    """Return a label as it is read, and how it is written if that is more than white space around it."""
    label = normalize_label(written)
    return label, (written.strip(), label) if written.strip() != label else None


def _tagged_characters(path: Path, number: int, line: str) -> tuple[str, str, Spelling | None]:
    if line[1:2] in ("\t", " ") and BIO_TAG.fullmatch(normalize_label(line[2:])):
        return line[0], *_label(line[2:])  # the character itself may be a tab or a space
    where = f"{path}:{number}"
    text, *tags = line.split("\t" if "\t" in line else " ")
    if len(tags) != 1:
        raise UserError(f"{where}: {_columns_of([text, *tags])} in {shown(line)}, expected 2; {_BIO_FORMAT}")
    if not text:
        raise UserError(f"{where}: no character before {shown(tags[0])}; {_BIO_FORMAT}")
    tag, spelling = _label(tags[0])
    if not BIO_TAG.fullmatch(tag):
        raise UserError(f"{where}: {shown(tags[0])} is no BIO tag; {_BIO_FORMAT}")
    return text, tag, spelling


def _some(path: Path, examples: list[E]) -> list[E]:
    if not examples:
        raise UserError(f"{path}: no examples")
    return examples


def _columns_of(row: Sequence[str]) -> str:
    return f"{len(row)} column{'s' * (len(row) != 1)}"
