"""Writing a token store: all of it or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glyphcrm.data.excluded_characters import without
from glyphcrm.data.sentences import split_sentences
from glyphcrm.data.store_format import DOCUMENT_ENDS, DTYPES, FILES, SENTENCE_ENDS, STORE, TOKENS, StoreInfo, read_info
from glyphcrm.data.worker_processes import ordered_map
from glyphcrm.errors import UserError
from glyphcrm.files import NO_ROOM

BLOCK_CHARACTERS = 1 << 18


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Give the block an empty directory that takes the place of the token store `directory` at its end.

    The caller keeps other processes out. What one that was killed has left is removed.

    Raises `UserError` if the disk is full, or `directory` holds other files or cannot be made.
    """
    directory = directory.resolve()
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; name a directory for the token store")
    if directory.is_dir() and (others := sorted(set(os.listdir(directory)) - set(FILES))):
        raise UserError(f"{directory} holds {others[0]}, which is no part of a token store; name another")
    building = directory.with_name(f".{directory.name}.building")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write in {building.parent} ({error.strerror})") from None
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
    finally:
        shutil.rmtree(building, ignore_errors=True)


class _Block(NamedTuple):
    """Tokenised documents that follow each other."""

    ids: npt.NDArray[np.unsignedinteger]  # (tokens,) uint16, or uint32 if they do not fit
    lengths: npt.NDArray[np.int64]  # (sentences,) tokens of each sentence
    documents: npt.NDArray[np.int64]  # (documents,) sentences of each document
    characters: int  # of the text


def blocks(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Join documents, lists of paragraphs, to blocks of about a quarter of a million characters."""
    block: list[list[str]] = []
    characters = 0
    for document in documents:
        block.append(document)
        characters += sum(map(len, document))
        if characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _tokenized(
    block: list[list[str]],
    encode: Callable[[str], npt.NDArray[np.int32]],
    max_sentence_length: int,
    excluded: frozenset[str],
) -> _Block:
    sentences: list[npt.NDArray[np.int32]] = []
    documents: list[int] = []
    for document in without(block, excluded) if excluded else block:
        before = len(sentences)
        for paragraph in document:
            for sentence in split_sentences(paragraph, max_sentence_length):
                ids = encode(sentence)
                if 0 < len(ids) <= max_sentence_length:
                    sentences.append(ids)
                else:  # NFC makes some characters two or three
                    sentences += (ids[i : i + max_sentence_length] for i in range(0, len(ids), max_sentence_length))
        if len(sentences) > before:
            documents.append(len(sentences) - before)
    ids = np.concatenate(sentences) if sentences else np.empty(0, np.int32)
    if len(ids) and ids.min() < 0:
        raise ValueError(f"encode returned the id {ids.min()}; ids are 0 or more")
    fits = not len(ids) or ids.max() <= np.iinfo(np.uint16).max
    return _Block(
        ids.astype(np.uint16 if fits else np.uint32),
        np.fromiter(map(len, sentences), np.int64, len(sentences)),
        np.array(documents, np.int64),
        sum(len(paragraph) for document in block for paragraph in document),
    )


def write_files(
    building: Path,
    documents: Iterable[list[str]],
    encode: Callable[[str], npt.NDArray[np.int32]],
    max_sentence_length: int,
    fingerprint: str,
    progress: bool,
    excluded: frozenset[str],
    workers: int,
) -> StoreInfo:
    """Write the files of a store into `building`; the arguments are those of `TokenStore.write`."""
    tokenize = partial(_tokenized, encode=encode, max_sentence_length=max_sentence_length, excluded=excluded)
    with (
        _ArrayFile(building / TOKENS, np.uint16) as tokens,
        _ArrayFile(building / SENTENCE_ENDS, np.int64) as sentence_ends,
        _ArrayFile(building / DOCUMENT_ENDS, np.int64) as document_ends,
        tqdm(desc="Tokenising", unit=" characters", unit_scale=True, disable=not progress) as bar,
    ):
        for block in ordered_map(tokenize, blocks(documents), workers):
            document_ends.append(sentence_ends.items + np.cumsum(block.documents))
            sentence_ends.append(tokens.items + np.cumsum(block.lengths))
            if block.ids.dtype == np.uint32:
                tokens.widen(np.uint32)
            tokens.append(block.ids)
            bar.update(block.characters)
    info = StoreInfo(
        fingerprint=fingerprint,
        dtype=tokens.dtype.name,
        max_sentence_length=max_sentence_length,
        documents=document_ends.items,
        sentences=sentence_ends.items,
        tokens=tokens.items,
        sha256={file.path.name: file.digest.hexdigest() for file in (tokens, sentence_ends, document_ends)},
    )
    info.save(building / STORE)
    return info


def write_joined(building: Path, parts: Sequence[Path], fingerprint: str) -> StoreInfo:
    """Write into `building` what makes `parts`, the directories of stores, one store; their tokens stay where they are.

    Raises `UserError`, which names the part, if one is not whole.
    """
    infos = [read_info(part) for part in parts]
    with (
        _ArrayFile(building / SENTENCE_ENDS, np.int64) as sentence_ends,
        _ArrayFile(building / DOCUMENT_ENDS, np.int64) as document_ends,
    ):
        tokens = sentences = 0
        for part, info in zip(parts, infos, strict=True):
            _append_ends(sentence_ends, part, info, SENTENCE_ENDS, tokens)
            _append_ends(document_ends, part, info, DOCUMENT_ENDS, sentences)
            tokens += info.tokens
            sentences += info.sentences
    whole = StoreInfo(
        fingerprint=fingerprint,
        dtype=max((info.dtype for info in infos), key=DTYPES.index),
        max_sentence_length=infos[0].max_sentence_length,
        documents=document_ends.items,
        sentences=sentences,
        tokens=tokens,
        sha256={},
        parts=[(info.dtype, info.tokens) for info in infos],
    )
    digests = [*(info.sha256[TOKENS] for info in infos), sentence_ends.digest.hexdigest()]
    digests.append(document_ends.digest.hexdigest())
    whole = replace(whole, sha256=dict(zip(whole.sizes, digests, strict=True)))
    whole.save(building / STORE)
    return whole


def _append_ends(ends: _ArrayFile, part: Path, info: StoreInfo, name: str, offset: int) -> None:
    digest = hashlib.sha256()
    with open(part / name, "rb") as file:
        while content := file.read(BLOCK_CHARACTERS * ends.dtype.itemsize):
            digest.update(content)
            ends.append(np.frombuffer(content, ends.dtype) + offset)
    if digest.hexdigest() != info.sha256[name]:
        raise UserError(f"{part / name} is damaged (its SHA-256 is not the one in {STORE}); tokenise that part again")


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
            while block := file.read(BLOCK_CHARACTERS * narrow_dtype.itemsize):
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
