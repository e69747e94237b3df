"""A tokenised corpus on disk, read through memory maps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glyphcrm.data.store_format import DOCUMENT_ENDS, SENTENCE_ENDS, check_bytes, read_info
from glyphcrm.data.store_writer import replacing, write_files, write_joined
from glyphcrm.errors import UserError

COUNT_BLOCK = 1 << 22  # tokens


class TokenStore:
    """Documents of sentences of token ids. Made by `write`, `join` or `open`."""

    def __init__(self, directory: Path) -> None:
        info = read_info(directory)
        self.directory = directory
        self.fingerprint = info.fingerprint  # what `write` was given, to tell what text and tokenizer this came from
        self.max_sentence_length = info.max_sentence_length  # in tokens
        if not info.tokens:
            raise UserError(f"{directory} holds no character; tokenise text with some")
        files = info.token_files
        self._tokens = [_map(directory / name, np.dtype(dtype), count) for name, (dtype, count) in files.items()]
        self._starts = list(accumulate((count for _, count in files.values()), initial=0))  # of each file, and the end
        # int64, memory-mapped: where each sentence ends, in tokens, and each document, in sentences
        self.sentence_ends = _map(directory / SENTENCE_ENDS, np.dtype(np.int64), info.sentences)
        self.document_ends = _map(directory / DOCUMENT_ENDS, np.dtype(np.int64), info.documents)
        if self.sentence_ends[-1] != info.tokens or self.document_ends[-1] != info.sentences:
            raise UserError(f"{directory}: its files do not fit together; delete it and tokenise again")

    @classmethod
    def write(
        cls,
        directory: Path,
        documents: Iterable[list[str]],
        encode: Callable[[str], npt.NDArray[np.int32]],
        *,
        max_sentence_characters: int,
        fingerprint: str,
        progress: bool,
        excluded: frozenset[str] = frozenset(),
        workers: int = 0,
    ) -> TokenStore:
        """Tokenise `documents`, lists of paragraphs, into `directory`, and open it.

        The store is built beside `directory` and renamed when it is whole; a store that was there
        is replaced. Memory use does not depend on the size of the corpus.

        Args:
            encode: raw text of a sentence -> (n,) int32 ids without special tokens. Sentences and documents that come
                out empty are dropped.
            max_sentence_characters: the most tokens a sentence may have; longer ones are cut.
            fingerprint: stands for the text and the tokenizer; `open` and `matches` compare it.
            excluded: sentences with one of these characters are left out.
            workers: so many processes tokenise what this one reads; with fewer than 2 this one does. The store is the
                same whatever their number.

        Raises `UserError` if nothing is left to write, if a process was killed, and as `replacing`.
        """
        arguments = (documents, encode, max_sentence_characters, fingerprint, progress, excluded, workers)
        with replacing(directory) as building:
            if not write_files(building, *arguments).tokens:
                raise UserError("the documents hold no character that can be drawn")
        return cls.open(directory)

    @classmethod
    def join(cls, directory: Path, parts: Sequence[Path], fingerprint: str) -> TokenStore:
        """Make `parts`, the stores ``parts/1-of-N/tokens`` and so on beside `directory`, one store, and open it.

        It has the documents of the first part, then those of the second, and so on. The tokens stay in the parts.

        Raises `UserError` if one is not whole, if all are empty, and as `replacing`.
        """
        with replacing(directory) as building:
            if not write_joined(building, parts, fingerprint).tokens:
                raise UserError("the documents hold no character that can be drawn")
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path, fingerprint: str | None = None) -> TokenStore:
        """Open a store; raise `UserError` if it is not whole, or if `fingerprint` is given and is not its own."""
        store = cls(directory)
        if fingerprint is not None:
            _check_fingerprint(directory, store.fingerprint, fingerprint)
        return store

    @staticmethod
    def check(directory: Path, fingerprint: str, digests: Path | None = None) -> None:
        """Raise `UserError` unless `directory` holds a whole store with this fingerprint, every byte as it was written.

        `digests`: where `glyphcrm.files.file_digest` keeps what it has read once.
        """
        info = read_info(directory)
        _check_fingerprint(directory, info.fingerprint, fingerprint)
        check_bytes(directory, info, digests)

    @staticmethod
    def matches(directory: Path, fingerprint: str, digests: Path | None = None) -> bool:
        """Whether `check` finds nothing wrong."""
        try:
            TokenStore.check(directory, fingerprint, digests)
        except UserError:
            return False
        return True

    @property
    def document_count(self) -> int:
        return len(self.document_ends)

    @property
    def sentence_count(self) -> int:
        return len(self.sentence_ends)

    @property
    def token_count(self) -> int:
        return self._starts[-1]

    def sentence(self, i: int) -> npt.NDArray[np.unsignedinteger]:
        """Return the ids of sentence `i`: (n,) uint16 or uint32, read-only."""
        return self.sentences(i, i + 1)

    def sentences(self, first: int, end: int) -> npt.NDArray[np.unsignedinteger]:
        """Return the ids of the sentences in [first, end), joined: (n,), read-only, no copy within one part.

        Raises `IndexError` unless 0 <= first < end <= sentence_count.
        """
        if not 0 <= first < end <= self.sentence_count:
            raise IndexError(f"sentences [{first}, {end}) of {self.sentence_count}")
        start = self.sentence_ends[first - 1] if first > 0 else 0
        stop = self.sentence_ends[end - 1]
        if len(self._tokens) == 1:
            return self._tokens[0][start:stop]
        pieces = range(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop))
        found = [self._tokens[i][max(start - self._starts[i], 0) : stop - self._starts[i]] for i in pieces]
        if len(found) == 1:
            return found[0]
        joined = np.concatenate(found)
        joined.flags.writeable = False
        return joined

    def token_counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """Return how often each id in range(vocab_size) occurs: (vocab_size,). Others are not counted."""
        counts = np.zeros(vocab_size, np.int64)
        blocks = (tokens[i : i + COUNT_BLOCK] for tokens in self._tokens for i in range(0, len(tokens), COUNT_BLOCK))
        for block in blocks:
            counts += np.bincount(block, minlength=vocab_size)[:vocab_size]
        return counts

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        # A process that is not forked maps the files itself; a pickled memory map is a full copy.
        return TokenStore, (self.directory,)


def _check_fingerprint(directory: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise UserError(
            f"{directory} was made from other text, another tokenizer or --max-length "
            f"(fingerprint {found}, wanted {wanted}); tokenise again"
        )


def _map(path: Path, dtype: np.dtype, items: int) -> npt.NDArray:
    if items == 0:
        return np.empty(0, dtype)  # no file of no bytes can be mapped
    # A plain array on the map: slices of np.memmap itself cost microseconds.
    return np.memmap(path, dtype, mode="r", shape=(items,)).view(np.ndarray)
