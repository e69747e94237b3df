"""A task of one's own: files, and a .toml of a few lines that says what stands where.

    kind = "sentence"        # or "pair", "tagging"
    train = "reviews.tsv"    # .tsv .csv .jsonl .json (JSON lines); tagging: .txt .bio; paths relative to the .toml
    text = "review"          # names of columns, or numbers from 0 of a file without header; for a pair also `pair`
    label = "stars"

Optional are `dev` and `test` (what is missing is split off), `title`, `metric`, `learning_rate`, `max_length`,
`batch_size` and `epochs`. A tagging task has no columns to name.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from glyphcrm.errors import UserError, shown
from glyphcrm.tasks.examples import Kind, Splits, TaggedExample, Task, TextExample
from glyphcrm.tasks.readers import Columns, read_bio, read_columns, read_csv, read_json_lines
from glyphcrm.tasks.splits import repeats_note, split, tagged_splits, text_labels

E = TypeVar("E", TextExample, TaggedExample)

SIZE_LIMIT = 1 << 16  # bytes of the .toml
TEXT_READERS: Mapping[str, Callable[[Path, Columns], list[TextExample]]] = {
    ".tsv": read_columns,
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".json": read_json_lines,
}
TAG_ENDINGS = (".txt", ".bio")
METRICS = {Kind.SENTENCE: ("accuracy", "macro_f1"), Kind.PAIR: ("accuracy", "macro_f1"), Kind.TAGGING: ("f1",)}

_FILES = ("train", "dev", "test")
_COLUMNS = {Kind.SENTENCE: ("text", "label"), Kind.PAIR: ("text", "label", "pair"), Kind.TAGGING: ()}
_OTHER_KEYS = ("kind", "title", "metric", "learning_rate", "max_length", "batch_size", "epochs")


def read_own_task(toml: Path) -> Task:
    """Return the task that `toml` describes, named as the file; its files are looked for when it is read.

    Raises `UserError`: the file cannot be read or is no TOML, a key is missing, unknown or of the wrong type, or a
    value is out of bounds; names the file and the key.
    """
    settings = _Settings(toml)
    kind = Kind(settings.choice("kind", tuple(Kind)))
    settings.refuse_others((*_FILES, *_COLUMNS[kind], *_OTHER_KEYS), f"of a {kind} task")
    files = {name: toml.parent / settings.string(name) for name in _FILES if name == "train" or name in settings.values}
    endings = TAG_ENDINGS if kind is Kind.TAGGING else tuple(TEXT_READERS)
    for name, path in files.items():
        if path.suffix.lower() not in endings:
            raise UserError(f"{toml}: {name} = '{path.name}': give a file that ends in {', '.join(endings)}")
    read: Callable[[Path], Splits] = functools.partial(_read_tagged, files)
    if kind is not Kind.TAGGING:
        columns = _columns(settings, kind)
        readers = [TEXT_READERS[path.suffix.lower()] for path in files.values()]
        if isinstance(columns.text, int) and read_json_lines in readers:
            raise UserError(f"{toml}: text = {columns.text}: JSON lines have keys; give their names")
        read = functools.partial(_read_texts, files, columns)
    return Task(
        name=toml.stem,
        title=settings.string("title", toml.stem),
        kind=kind,
        learning_rate=settings.rate("learning_rate", Task.learning_rate),
        metric=settings.choice("metric", METRICS[kind], METRICS[kind][0]),
        max_length=settings.integer("max_length", Task.max_length, least=8),
        batch_size=settings.integer("batch_size", Task.batch_size, least=1),
        epochs=settings.integer("epochs", Task.epochs, least=1),
        source=f"its files are named in {toml}",
        read=read,
    )


class _Settings:
    """The keys of a .toml, each read with its type."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                content = file.read(SIZE_LIMIT + 1)
            if len(content) > SIZE_LIMIT:
                raise UserError(f"{path}: over {SIZE_LIMIT} bytes; a task takes a few lines")
            self.values = tomllib.loads(content.decode("utf-8-sig"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}: not TOML: {error}") from None
        self.path = path

    def refuse_others(self, known: Sequence[str], of: str) -> None:
        for key in self.values:
            if key not in known:
                raise UserError(f"{self.path}: unknown key {shown(key)}; the keys {of} are {', '.join(known)}")

    def get(self, key: str, accepts: Callable[[Any], bool], expected: str, default: object = None) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise UserError(f"{self.path}: no key '{key}'")
        if not accepts(value):
            raise UserError(f"{self.path}: {key} = {shown(str(value))}; give {expected}")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        return self.get(key, _is_text, "a string", default)

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        expected = " or ".join(f'"{choice}"' for choice in choices)
        return self.get(key, lambda value: isinstance(value, str) and value in choices, expected, default)

    def integer(self, key: str, default: int, *, least: int) -> int:
        expected = f"a whole number from {least} to a million"
        return self.get(key, lambda value: type(value) is int and least <= value <= 10**6, expected, default)

    def rate(self, key: str, default: float) -> float:
        expected = "a number above 0, at most 1"
        return float(self.get(key, lambda value: type(value) in (int, float) and 0 < value <= 1, expected, default))

    def column(self, key: str) -> str | int:
        expected = "the name of a column, or its number from 0"
        column = self.get(key, lambda value: value in range(1000) if type(value) is int else _is_text(value), expected)
        return column.strip() if isinstance(column, str) else column


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _columns(settings: _Settings, kind: Kind) -> Columns:
    found = {key: settings.column(key) for key in _COLUMNS[kind]}
    if len({type(column) for column in found.values()}) > 1:
        raise UserError(f"{settings.path}: {', '.join(found)}: give names for all of them, or numbers for all")
    if len(set(found.values())) < len(found):
        raise UserError(f"{settings.path}: {', '.join(found)}: give each a column of its own")
    return Columns(found["text"], found["label"], found.get("pair"))


def _read_texts(files: Mapping[str, Path], columns: Columns, _folder: Path) -> Splits:
    parts = {name: TEXT_READERS[path.suffix.lower()](path, columns) for name, path in files.items()}
    notes = repeats_note(parts["train"]) if len(parts) < len(_FILES) else ()
    (train, dev, test), split_notes = _completed(parts)
    return Splits(train, dev, test, text_labels(train), (*split_notes, *notes))


def _read_tagged(files: Mapping[str, Path], _folder: Path) -> Splits:
    parts = {name: read_bio(path) for name, path in files.items()}
    return tagged_splits(*_completed(parts))


def _completed(
    parts: Mapping[str, Sequence[E]],
) -> tuple[tuple[tuple[E, ...], tuple[E, ...], tuple[E, ...]], tuple[str, ...]]:
    """Split what is missing off train: a tenth of it each."""
    missing = [name for name in _FILES if name not in parts]
    train, dev, test = split(parts["train"], dev=0.1 * ("dev" in missing), test=0.1 * ("test" in missing))
    notes = (f"no file for {' and '.join(missing)}: a tenth of train each, drawn with a fixed seed",) if missing else ()
    return (train, tuple(parts.get("dev", dev)), tuple(parts.get("test", test))), notes
