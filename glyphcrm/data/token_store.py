"""A tokenised corpus on disk, read through memory maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glyphcrm.data.store_format import DOCUMENT_ENDS, SENTENCE_ENDS, TOKENS, has_its_bytes, read_info
from glyphcrm.data.store_writer import replacing, write_files
from glyphcrm.errors import UserError

COUNT_BLOCK = 1 << 22  # tokens


class TokenStore:
    """Documents of sentences of token ids. Made by `write` or `open`."""

    def __init__(self, directory: Path) -> None:
        info = read_info(directory)
        self.directory = directory
        self.fingerprint = info.fingerprint  # what `write` was given, to tell what text and tokenizer this came from
        self.max_sentence_length = info.max_sentence_length  # in tokens
        self._tokens = _map(directory / TOKENS, np.dtype(info.dtype), info.tokens)
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
    ) -> TokenStore:
        """Tokenise `documents`, lists of paragraphs, into `directory`, and open it.

        The store is built beside `directory` and renamed when it is whole; a store that was there
        is replaced. Memory use does not depend on the size of the corpus.

        Args:
            encode: raw text of a sentence -> (n,) int32 ids without special tokens. Sentences and documents that come
                out empty are dropped.
            max_sentence_characters: the most tokens a sentence may have; longer ones are cut.
            fingerprint: stands for the text and the tokenizer; `open` and `matches` compare it.

        Raises `UserError` if nothing is left to write, and as `replacing`.
        """
        with replacing(directory) as building:
            write_files(building, documents, encode, max_sentence_characters, fingerprint, progress)
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path, fingerprint: str | None = None) -> TokenStore:
        """Open a store; raise `UserError` if it is not whole, or if `fingerprint` is given and is not its own."""
        store = cls(directory)
        if fingerprint is not None and store.fingerprint != fingerprint:
            raise UserError(
                f"{directory} was made from other text or another tokenizer "
                f"(fingerprint {store.fingerprint}, wanted {fingerprint}); tokenise again"
            )
        return store

    @staticmethod
    def matches(directory: Path, fingerprint: str, digests: Path | None = None) -> bool:
        """Whether `directory` holds a whole store with this fingerprint, every byte as it was written.

        `digests`: where `glyphcrm.files.file_digest` keeps what it has read once.
        """
        try:
            info = read_info(directory)
            return info.fingerprint == fingerprint and has_its_bytes(directory, info, digests)
        except UserError:
            return False

    @property
    def document_count(self) -> int:
        return len(self.document_ends)

    @property
    def sentence_count(self) -> int:
        return len(self.sentence_ends)

    @property
    def token_count(self) -> int:
        return len(self._tokens)

    def sentence(self, i: int) -> npt.NDArray[np.unsignedinteger]:
        """Return the ids of sentence `i`: (n,) uint16 or uint32, read-only."""
        return self.sentences(i, i + 1)

    def sentences(self, first: int, end: int) -> npt.NDArray[np.unsignedinteger]:
        """Return the ids of the sentences in [first, end), joined: (n,), read-only, no copy.

        Raises `IndexError` unless 0 <= first < end <= sentence_count.
        """
        if not 0 <= first < end <= self.sentence_count:
            raise IndexError(f"sentences [{first}, {end}) of {self.sentence_count}")
        start = self.sentence_ends[first - 1] if first > 0 else 0
        return self._tokens[start : self.sentence_ends[end - 1]]

    def document_sentences(self, document: int) -> range:
        """Return the numbers of the sentences of `document`."""
        if not 0 <= document < self.document_count:
            raise IndexError(f"document {document} of {self.document_count}")
        start = int(self.document_ends[document - 1]) if document > 0 else 0
        return range(start, int(self.document_ends[document]))

    def token_counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """Return how often each id in range(vocab_size) occurs: (vocab_size,). Others are not counted."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, self.token_count, COUNT_BLOCK):
            block = self._tokens[start : start + COUNT_BLOCK]
            counts += np.bincount(block, minlength=vocab_size)[:vocab_size]
        return counts

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        # A process that is not forked maps the files itself; a pickled memory map is a full copy.
        return TokenStore, (self.directory,)


def _map(path: Path, dtype: np.dtype, items: int) -> npt.NDArray:
    # A plain array on the map: slices of np.memmap itself cost microseconds.
    return np.memmap(path, dtype, mode="r", shape=(items,)).view(np.ndarray)
