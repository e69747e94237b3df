"""Text of data sets that the `datasets` library knows: by name from the hub, from files, or saved to disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glyphcrm.errors import UserError, listed, shown

PREFIX = "datasets:"


@dataclass(frozen=True)
class DatasetPiece:
    """Rows of a data set that lie together: those of one of its files, where the library can tell.

    Attributes:
        spec: the data set, as --data names it.
        name: of the piece.
        rows: a `datasets.Dataset` or `IterableDataset`.
        files: where the rows lie: paths, and URLs with what their server says of their state.
    """

    spec: str
    name: str
    rows: Any
    files: tuple[str, ...]

    def __str__(self) -> str:
        return self.spec

    @property
    def size(self) -> int:
        """Bytes; 1 where the files are elsewhere."""
        return sum(os.path.getsize(file) if os.path.isfile(file) else 1 for file in self.files)

    def values(self, column: str) -> Iterator[tuple[str, object]]:
        """Yield what stands in `column` of each row, and where that is.

        Raises `UserError`: there is no such column, or the rows cannot be read.
        """
        known = column in (self.rows.column_names or ())
        rows = iter(self.rows.select_columns([column]) if known else self.rows)
        number = 0
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # each source of rows has its own
                raise _unreadable(f"{self.spec}: row {number}", error) from None
            if row is None:
                return
            if column not in row:
                raise UserError(f"{self.spec}: no column {shown(column)}; the columns are {listed(row)}")
            yield f"{self.spec}: row {number} of {shown(column)}", row[column]
            number += 1


def dataset_pieces(spec: str) -> list[DatasetPiece]:
    """Return the pieces of ``datasets:NAME[:CONFIG[:SPLIT]]``, in order; the split is "train" unless given.

    NAME is what `datasets.load_dataset` takes, or a directory that `save_to_disk` wrote. Nothing is downloaded yet.

    Raises `UserError`: the library is not installed, or there is no such data set, configuration or split.
    """
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(f"{spec}: needs the datasets library: pip install datasets") from None
    datasets.disable_progress_bars()
    name, config, split, *more = *spec.removeprefix(PREFIX).split(":"), "", ""
    if not name or any(more):
        raise UserError(f"{spec}: give {PREFIX}NAME, {PREFIX}NAME:CONFIG or {PREFIX}NAME:CONFIG:SPLIT")
    try:
        if any(Path(name, file).exists() for file in ("state.json", "dataset_dict.json")):
            pieces = _saved(spec, name, split)
        else:
            pieces = _streamed(spec, name, config, split or "train")
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(spec, error) from None
    if not pieces:
        raise UserError(f"{spec}: holds no files")
    return pieces


def _saved(spec: str, directory: str, split: str) -> list[DatasetPiece]:
    import datasets

    rows = datasets.load_from_disk(directory)
    if isinstance(rows, dict):
        rows = _split(spec, rows, split or "train")
    elif split:
        raise UserError(f"{spec}: {directory} was saved without splits; leave {shown(split)} out")
    files = [str(file["filename"]) for file in rows.cache_files]
    return [DatasetPiece(spec, Path(file).name, datasets.Dataset.from_file(file), (file,)) for file in files]


def _streamed(spec: str, name: str, config: str, split: str) -> list[DatasetPiece]:
    import datasets

    builder = datasets.load_dataset_builder(name, config or None)
    data_files = _split(spec, builder.config.data_files or {}, split)
    told = [*data_files.origin_metadata, *[()] * len(data_files)]
    files = [
        file if os.path.isfile(file) else " ".join(map(str, (file, *state)))
        for file, state in zip(map(str, data_files), told, strict=False)
    ]
    rows: Any = builder.as_streaming_dataset(split=split)
    name = Path(name).name
    if rows.num_shards != len(files):
        return [DatasetPiece(spec, f"{name} {split}", rows, tuple(files))]
    return [
        DatasetPiece(spec, f"{name} {split} {i}", rows.shard(len(files), i), (file,)) for i, file in enumerate(files)
    ]


def _split(spec: str, splits: Any, split: str) -> Any:
    if split not in splits:
        raise UserError(f"{spec}: no split {shown(split)}; there are {listed(splits) or 'none'}")
    return splits[split]


def _unreadable(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: cannot be read: {type(error).__name__}: {str(error)[:300]}; repeat the command")
