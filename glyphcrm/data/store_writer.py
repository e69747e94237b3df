"""Writing a token store: all of it or nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glyphcrm.data.sentences import split_sentences
from glyphcrm.data.store_format import DOCUMENT_ENDS, FILES, SENTENCE_ENDS, STORE, TOKENS, StoreInfo
from glyphcrm.errors import UserError

FLUSH_TOKENS = 1 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Give the block an empty directory that takes the place of the token store `directory` at its end.

    Raises `UserError` if the disk is full, `directory` holds other files or cannot be made, or is being written.
    """
    directory = directory.resolve()
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; name a directory for the token store")
    if directory.is_dir() and (others := sorted(set(os.listdir(directory)) - set(FILES))):
        raise UserError(f"{directory} holds {others[0]}, which is no part of a token store; name another")
    with _building(directory) as building:
        try:
            yield building
            if directory.exists():
                # First the file that makes it whole, so that a kill leaves no half that looks whole.
                (directory / STORE).unlink(missing_ok=True)
                shutil.rmtree(directory)
            building.rename(directory)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise UserError(f"no room to write {directory} ({error.strerror}); free some or name another") from None


@contextmanager
def _building(directory: Path) -> Iterator[Path]:
    """A locked, empty directory beside `directory`, removed if the block fails.

    What a killed process left there is removed by the next one.
    """
    building = directory.with_name(f".{directory.name}.building")
    busy = UserError(f"another process is writing {directory}; wait for it or name another")
    try:
        building.mkdir(parents=True, exist_ok=True)
        lock = os.open(building, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write in {building.parent} ({error.strerror})") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # a file system without locks
        if not building.exists() or os.fstat(lock).st_ino != building.stat().st_ino:
            raise busy  # it finished, and took this directory along, between our open and our lock
        try:
            for stale in building.iterdir():
                stale.unlink()
            yield building
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def write_files(
    building: Path,
    documents: Iterable[list[str]],
    encode: Callable[[str], npt.NDArray[np.int32]],
    max_sentence_length: int,
    fingerprint: str,
    progress: bool,
) -> None:
    """Write the files of a store into `building`; the arguments are those of `TokenStore.write`."""
    with (
        _ArrayFile(building / TOKENS, np.uint16) as tokens,
        _ArrayFile(building / SENTENCE_ENDS, np.int64) as sentence_ends,
        _ArrayFile(building / DOCUMENT_ENDS, np.int64) as document_ends,
        tqdm(desc="Tokenising", unit=" characters", unit_scale=True, disable=not progress) as bar,
    ):
        pending: list[npt.NDArray[np.int32]] = []  # a sentence an entry
        ends: list[int] = []  # of documents, in sentences
        pending_tokens = sentences = token_count = 0

        def flush() -> None:
            nonlocal pending_tokens, token_count
            if pending:
                ids = np.concatenate(pending)
                if ids.min() < 0:
                    raise ValueError(f"encode returned the id {ids.min()}; ids are 0 or more")
                if ids.max() > np.iinfo(np.uint16).max:
                    tokens.widen(np.uint32)
                tokens.append(ids)
                lengths = np.fromiter(map(len, pending), np.int64, len(pending))
                sentence_ends.append(token_count + np.cumsum(lengths))
                token_count += len(ids)
            document_ends.append(np.array(ends, np.int64))
            pending.clear()
            ends.clear()
            pending_tokens = 0

        for document in documents:
            before = sentences
            for paragraph in document:
                for sentence in split_sentences(paragraph, max_sentence_length):
                    ids = encode(sentence)
                    # NFC makes some characters two or three.
                    for start in range(0, len(ids), max_sentence_length):
                        pending.append(ids[start : start + max_sentence_length])
                        sentences += 1
                    pending_tokens += len(ids)
                    if pending_tokens >= FLUSH_TOKENS:
                        flush()
                bar.update(len(paragraph))
            if sentences > before:
                ends.append(sentences)
        flush()
    if token_count == 0:
        raise UserError("the documents hold no character that can be drawn")
    StoreInfo(
        fingerprint=fingerprint,
        dtype=tokens.dtype.name,
        max_sentence_length=max_sentence_length,
        documents=document_ends.items,
        sentences=sentences,
        tokens=token_count,
        sha256={file.path.name: file.digest.hexdigest() for file in (tokens, sentence_ends, document_ends)},
    ).save(building / STORE)


class _ArrayFile:
    """A flat binary file that grows by arrays."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.path = path
        self.dtype: np.dtype = np.dtype(dtype)
        self.items = 0
        self.digest = hashlib.sha256()  # of what has been written
        self._file = path.open("wb")

    def append(self, values: npt.NDArray) -> None:
        # Not ndarray.tofile: its OSError has no errno, so a full disk could not be told.
        content = np.ascontiguousarray(values, self.dtype).data
        self._file.write(content)
        self.digest.update(content)
        self.items += len(values)

    def widen(self, dtype: npt.DTypeLike) -> None:
        """Convert what has been written to `dtype`."""
        if self.dtype == dtype:
            return
        self._file.close()
        narrow, narrow_dtype = self.path.with_suffix(".narrow"), self.dtype
        self.path.rename(narrow)
        self.dtype, self.items, self.digest = np.dtype(dtype), 0, hashlib.sha256()
        self._file = self.path.open("wb")
        with narrow.open("rb") as file:
            while block := file.read(FLUSH_TOKENS * narrow_dtype.itemsize):
                self.append(np.frombuffer(block, narrow_dtype))
        narrow.unlink()

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
