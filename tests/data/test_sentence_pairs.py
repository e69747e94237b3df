from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data.sentence_pairs import SentencePairs, split_documents
from glyphcrm.data.token_store import TokenStore
from glyphcrm.errors import UserError
from tests.data.code_points import decode, encode, make_documents

STOP = ord("。")


def owner(ids: np.ndarray) -> int:
    """The document that these tokens come from; see the fixture `store`."""
    (character,) = set(ids.tolist()) - {STOP}
    return int(character) - 0x4E00


def of_one_sentence(store: TokenStore) -> np.ndarray:
    """The documents that have no two sentences."""
    return np.flatnonzero(np.diff(store.document_ends, prepend=0) == 1)


@pytest.mark.parametrize("max_length", [125, 200, 512])
def test_spans_reassemble_every_document(store: TokenStore, max_length: int) -> None:
    pairs = SentencePairs(store, np.arange(100), max_length=max_length, seed=1)
    texts = dict.fromkeys(range(100), "")
    covered = 0
    for first, end in pairs.spans.tolist():
        assert end - first >= 2
        span = store.sentences(first, end)
        assert len(span) <= max_length - 3
        assert first >= covered - 1, "at most one sentence is shared with the span before"
        texts[owner(span)] += decode(store.sentences(max(first, covered), end))
        covered = end
    expected = {d: "".join(document) for d, document in enumerate(make_documents(100))}
    alone = set(of_one_sentence(store).tolist())
    assert alone
    assert {d: text for d, text in texts.items() if d not in alone} == {
        d: text for d, text in expected.items() if d not in alone
    }


def test_only_sentences_that_fit_no_neighbour_are_left_out(store: TokenStore) -> None:
    pairs = SentencePairs(store, np.arange(100), max_length=40, seed=1)
    used = {sentence for first, end in pairs.spans.tolist() for sentence in range(first, end)}
    lengths = [
        len(store.sentences(first, first + 2))
        for document in itertools.starmap(range, itertools.pairwise([0, *store.document_ends.tolist()]))
        for left in set(document) - used
        for first in (left - 1, left)
        if first in document and first + 1 in document
    ]
    assert lengths and min(lengths) > 37


@pytest.mark.parametrize("max_length", [40, 125, 512])
def test_pairs(store: TokenStore, max_length: int) -> None:
    documents = np.arange(1, 100, 2)
    pairs = SentencePairs(store, documents, max_length=max_length, seed=1)
    epochs = -(-6000 // len(pairs))
    right, lengths = 0, {True: [0], False: [0]}
    for epoch in range(epochs):
        for index in range(len(pairs)):
            a, b, is_next = pairs.pair(epoch, index)
            assert len(a) >= 1
            assert len(b) >= 1
            assert len(a) + len(b) <= max_length - 3
            assert owner(a) in documents
            assert owner(b) in documents
            assert (owner(a) == owner(b)) == is_next
            first, end = pairs.spans[index]
            span = store.sentences(first, end)
            assert (a == span[: len(a)]).all()
            if is_next:
                assert (np.concatenate([a, b]) == span).all()
            lengths[is_next].append(len(a) + len(b))
            right += is_next
    count = epochs * len(pairs)
    assert abs(right - count / 2) < 4 * (count / 4) ** 0.5
    if max_length > 40:
        assert np.mean(lengths[False]) == pytest.approx(np.mean(lengths[True]), rel=0.05)


def test_a_pair_depends_on_seed_epoch_and_index_alone(store: TokenStore) -> None:
    def sample(seed: int, epoch: int) -> list[tuple[bytes, bytes, bool]]:
        pairs = SentencePairs(store, np.arange(100), max_length=200, seed=seed)
        drawn = {i: pairs.pair(epoch, i) for i in reversed(range(len(pairs)))}
        return [(drawn[i][0].tobytes(), drawn[i][1].tobytes(), drawn[i][2]) for i in range(len(pairs))]

    assert sample(1, 0) == sample(1, 0)
    assert sample(1, 0) != sample(1, 1)
    assert sample(1, 0) != sample(2, 0)


def test_every_other_document_is_drawn(tmp_path: Path) -> None:
    documents = [[f"{chr(0x4E00 + d)}。" * 3] for d in range(4)]
    store = TokenStore.write(
        tmp_path / "s", documents, encode, max_sentence_characters=9, fingerprint="", progress=False
    )
    pairs = SentencePairs(store, np.arange(4), max_length=20, seed=3)
    drawn = {(owner(a), owner(b)) for e in range(100) for i in range(4) for a, b, _ in [pairs.pair(e, i)]}
    assert drawn == {(a, b) for a in range(4) for b in range(4)}


def test_what_gives_no_pair_is_an_error(store: TokenStore) -> None:
    alone = of_one_sentence(store)
    with pytest.raises(UserError, match="two documents or more, here is 1; add text"):
        SentencePairs(store, np.array([5, 5]), max_length=100, seed=1)
    with pytest.raises(UserError, match="no two neighbouring sentences of 2 documents fit 97 tokens"):
        SentencePairs(store, alone[:2], max_length=100, seed=1)
    with pytest.raises(UserError, match="max_length is 4"):
        SentencePairs(store, np.arange(100), max_length=4, seed=1)
    with pytest.raises(UserError, match="the seed is -1"):
        SentencePairs(store, np.arange(100), max_length=100, seed=-1)


@given(st.integers(4, 10_000), st.floats(0.0001, 0.9999))
def test_split_documents(count: int, fraction: float) -> None:
    train, held_out = split_documents(count, fraction)
    assert sorted([*train, *held_out]) == list(range(count))
    assert len(train) >= 2
    assert len(held_out) >= 2
    if 2 <= round(count * fraction) <= count - 2:
        assert len(held_out) == round(count * fraction)
    gaps = np.diff(held_out)
    assert gaps.max() - gaps.min() <= 1, "evenly spread"


@pytest.mark.parametrize(("count", "fraction"), [(3, 0.5), (100, 0.0), (100, 1.0), (100, float("nan"))])
def test_impossible_splits(count: int, fraction: float) -> None:
    with pytest.raises(UserError, match="held-out"):
        split_documents(count, fraction)
