"""Sentence pairs for next-sentence prediction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glyphcrm.data.random_streams import Purpose, random_stream
from glyphcrm.data.token_store import TokenStore
from glyphcrm.errors import UserError

PAIR_SPECIALS = 3  # [CLS] a [SEP] b [SEP]

# Wrong continuations to choose from by length. On news text the best guess from the lengths of a and
# b alone is right in 53 % of pairs with 1 candidate that fills the room, and in 51 % with 8.
CANDIDATES = 8

Ids = npt.NDArray[np.unsignedinteger]


def check_document_count(count: int) -> None:
    """Raise `UserError` if `count` documents are too few to hold some out."""
    if count < 4:
        raise UserError(
            f"the text has {count} document{'s' * (count != 1)}; at least 4 are needed, training and held-out ones "
            "(in .txt a blank line ends a document)"
        )


def split_documents(count: int, held_out_fraction: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split range(count) into training and held-out documents, both sorted int64.

    The held-out ones stand at even distances over the corpus. Each part gets at least two documents, as a wrong
    continuation needs another document.

    Raises `UserError` if there are fewer than 4 documents or the fraction is not within (0, 1).
    """
    if not 0 < held_out_fraction < 1:
        raise UserError(f"the held-out fraction is {held_out_fraction}, and must be between 0 and 1")
    check_document_count(count)
    held = min(max(round(count * held_out_fraction), 2), count - 2)
    held_out = (2 * np.arange(held, dtype=np.int64) + 1) * count // (2 * held)
    return np.setdiff1d(np.arange(count, dtype=np.int64), held_out), held_out


class SentencePairs:
    """Pairs (a, b) of runs of sentences, where b follows a in half of the cases.

    Each document is packed greedily into spans: runs of two or more whole sentences, at most
    `max_length` - 3 tokens. Where a sentence cannot share a span with the next one, its span
    starts one sentence earlier, so that it is not lost.

    Attributes:
        limit: the most tokens of a and b together, `max_length` - 3.
        spans: (n, 2) int64, first sentence and end of each span, in the order of the corpus.
    """

    def __init__(self, store: TokenStore, documents: npt.NDArray[np.integer], *, max_length: int, seed: int) -> None:
        """Pack the `documents`, numbers of documents of `store`, each once.

        Raises `UserError` if there are fewer than two documents, or no span can be made, or
        `max_length` is below 5, or `seed` is negative.
        """
        self.store = store
        self.limit = max_length - PAIR_SPECIALS
        if self.limit < 2:
            raise UserError(f"max_length is {max_length}, and must be at least {PAIR_SPECIALS + 2}")
        if not 0 <= seed < 1 << 64:
            raise UserError(f"the seed is {seed}, and must be in [0, 2**64)")
        self._seed = seed
        self._documents = np.unique(np.asarray(documents, np.int64))
        if len(self._documents) < 2:
            raise UserError(
                f"next-sentence prediction needs two documents or more, here is {len(self._documents)}; "
                "add text, or put a blank line between documents"
            )
        # First sentence and end of each document.
        self._first = first = np.where(self._documents > 0, store.document_ends[self._documents - 1], 0)
        self._end = end = store.document_ends[self._documents]
        self.spans, self._span_owner = _pack(store.sentence_ends, first, end, self.limit)
        if len(self.spans) == 0:
            raise UserError(
                f"no two neighbouring sentences of {len(self._documents)} documents fit {self.limit} tokens; "
                "add documents of two sentences or more, or raise max_length"
            )

    def __len__(self) -> int:
        return len(self.spans)

    def pair(self, epoch: int, index: int) -> tuple[Ids, Ids, bool]:
        """Return (a, b, whether b follows a) for span `index`, the same for the same arguments.

        a is the sentences of the span before a random split. b is those after it or, with
        probability 1/2, a run of whole sentences from a random place in another document, chosen
        such that lengths do not give the answer away; if no whole sentence fits, a part of one.
        Neither is empty, together they have at most `limit` tokens; both are read-only views of the store.
        """
        first, end = self.spans[index].tolist()
        rng = random_stream(self._seed, epoch, index, Purpose.PAIR)
        split = int(rng.integers(first + 1, end))
        a = self.store.sentences(first, split)
        b = self.store.sentences(split, end)
        if rng.random() < 0.5:
            return a, b, True
        return a, self._wrong_continuation(rng, index, len(b), self.limit - len(a)), False

    def _wrong_continuation(self, rng: np.random.Generator, index: int, wanted: int, room: int) -> Ids:
        """Of some random runs in other documents, take the one that comes nearest to `wanted` tokens."""
        sentence_ends = self.store.sentence_ends
        other = rng.integers(len(self._documents) - 1, size=CANDIDATES)
        other += other >= self._span_owner[index]
        stop = self._end[other]
        first = rng.integers(self._first[other], stop)
        start = np.where(first > 0, sentence_ends[first - 1], 0)
        # The last sentence of a run: the one that reaches `wanted`, or the one before.
        long = np.minimum(np.searchsorted(sentence_ends, start + wanted), stop - 1)
        last = np.stack([long, np.maximum(long - 1, first)])
        lengths = sentence_ends[last] - start
        miss = np.where(lengths <= room, np.abs(lengths - wanted), np.iinfo(np.int64).max)
        end, run = np.unravel_index(int(miss.argmin()), miss.shape)
        # Where not one sentence fits, it is cut.
        return self.store.sentences(int(first[run]), int(last[end, run]) + 1)[:room]


def _pack(
    sentence_ends: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    limit: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return spans (n, 2) of the documents [first, end), and the document of each (n,).

    Takes a step in all documents at once: the number of NumPy calls is that of the spans of the longest document.
    """

    def token_start(sentence: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where(sentence > 0, sentence_ends[sentence - 1], 0)

    spans: list[npt.NDArray[np.int64]] = []
    owners: list[npt.NDArray[np.int64]] = []
    owner = np.arange(len(first), dtype=np.int64)
    at = first.astype(np.int64)
    while len(owner):
        stop = np.searchsorted(sentence_ends, token_start(at) + limit, side="right")
        stop = np.clip(stop, at + 1, end[owner])
        earlier = np.maximum(at - 1, first[owner])
        start = np.where(stop - at >= 2, at, earlier)
        fits = (stop - start >= 2) & (sentence_ends[stop - 1] - token_start(start) <= limit)
        spans.append(np.stack([start[fits], stop[fits]], axis=1))
        owners.append(owner[fits])
        going_on = stop < end[owner]
        owner, at = owner[going_on], stop[going_on]
    all_spans, all_owners = np.concatenate(spans), np.concatenate(owners)
    order = np.argsort(all_spans[:, 0], kind="stable")
    return all_spans[order], all_owners[order]
