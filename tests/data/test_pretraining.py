from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from glyphcrm.data.collator import padded_batch
from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.data.permutation import visit
from glyphcrm.data.pretraining import PretrainingStream, Sample
from glyphcrm.data.sentence_pairs import SentencePairs
from glyphcrm.data.token_store import TokenStore

MAX_LENGTH = 125
UNK, CLS, SEP, FIRST = 1, 2, 3, 5
VOCABULARY = 0x4E00 + 80  # documents 80 ... 99 of the store can be read, not predicted


@pytest.fixture(scope="module")
def stream(store: TokenStore) -> PretrainingStream:
    pairs = SentencePairs(store, np.arange(100), max_length=MAX_LENGTH, seed=1)
    return PretrainingStream(pairs, 2 * len(pairs) + 10, VOCABULARY, seed=1)


def bytes_of(sample: Sample) -> tuple[bytes, ...]:
    return tuple(array.tobytes() for array in sample.values())


def test_samples(stream: PretrainingStream) -> None:
    pairs = stream.pairs
    for position in range(len(stream)):
        sample = stream[position]
        assert list(sample) == ["input_ids", "labels", "token_type_ids", "next_sentence_label"]
        assert all(array.dtype == np.int64 for array in sample.values())
        epoch, k = divmod(position, len(pairs))
        a, b, is_next = pairs.pair(epoch, visit(stream.seed, epoch, k, len(pairs)))
        truth = np.array([CLS, *a, SEP, *b, SEP])
        assert len(truth) <= MAX_LENGTH
        input_ids, labels = sample["input_ids"], sample["labels"]
        chosen = labels != IGNORED_LABEL
        assert (input_ids[~chosen] == truth[~chosen]).all()
        assert (labels[chosen] == np.where(truth < VOCABULARY, truth, UNK)[chosen]).all()
        assert not (chosen & (truth < FIRST)).any()
        assert chosen.sum() == max(1, round(0.15 * (len(truth) - 3)))
        assert sample["token_type_ids"].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert sample["next_sentence_label"] == (0 if is_next else 1)


def test_an_epoch_takes_every_span_once_and_anew(stream: PretrainingStream) -> None:
    n = len(stream.pairs)
    epochs = [[bytes_of(stream[e * n + k]) for k in range(n)] for e in range(2)]
    assert len(set(epochs[0])) == n
    assert not set(epochs[0]) & set(epochs[1])


def collate_nothing(samples: Sequence[Sample]) -> Sequence[Sample]:
    return samples


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_do_not_depend_on_workers_or_resumption(stream: PretrainingStream, workers: int) -> None:
    expected = [bytes_of(stream[position]) for position in reversed(range(len(stream)))][::-1]
    start = 37
    rest = Subset(stream, range(start, len(stream)))
    loader: DataLoader = DataLoader(rest, batch_size=16, num_workers=workers, collate_fn=collate_nothing)
    loaded = [bytes_of(sample) for batch in loader for sample in batch]
    assert loaded == expected[start:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_collates(stream: PretrainingStream, workers: int) -> None:
    loader: DataLoader = DataLoader(stream, batch_size=16, num_workers=workers, collate_fn=padded_batch)
    batch = next(iter(loader))
    assert torch.equal(batch["labels"], padded_batch([stream[i] for i in range(16)])["labels"])


def test_bounds(stream: PretrainingStream) -> None:
    for position in (-1, len(stream)):
        with pytest.raises(IndexError, match=f"position {position}"):
            stream[position]
    with pytest.raises(ValueError, match="length is 0"):
        PretrainingStream(stream.pairs, 0, VOCABULARY, seed=1)
    with pytest.raises(ValueError, match="mask_probability is 0"):
        PretrainingStream(stream.pairs, 1, VOCABULARY, seed=1, mask_probability=0)
    with pytest.raises(ValueError, match="a vocabulary of 5"):
        PretrainingStream(stream.pairs, 1, 5, seed=1)
