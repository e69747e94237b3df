from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data.collator import distinct_glyphs, padded_batch
from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.data.pretraining import Sample

PAD = 0
KEYS = [
    "input_ids",
    "token_type_ids",
    "attention_mask",
    "token_index",
    "glyph_ids",
    "glyph_index",
    "labels",
    "prediction_index",
    "next_sentence_label",
]


def make_sample(length: int, rng: np.random.Generator) -> Sample:
    return {
        "input_ids": rng.integers(1, 60, length),
        "labels": np.where(rng.random(length) < 0.2, rng.integers(1, 60, length), IGNORED_LABEL),
        "token_type_ids": rng.integers(0, 2, length),
        "next_sentence_label": np.array(rng.integers(0, 2), np.int64),
    }


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 99))
def test_batches(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [make_sample(length, rng) for length in lengths]
    batch = padded_batch(samples)
    assert list(batch) == KEYS
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    width = -(-max(lengths) // 8) * 8
    input_ids = batch["input_ids"]
    assert input_ids.shape == (len(samples), width)
    assert torch.equal(batch["glyph_ids"][batch["glyph_index"]], input_ids)
    assert torch.equal(batch["glyph_ids"], torch.unique(input_ids))
    for row, (sample, n) in enumerate(zip(samples, lengths, strict=True)):
        for key, padding in (("token_type_ids", 0), ("labels", IGNORED_LABEL)):
            assert (batch[key][row, :n].numpy() == sample[key]).all()
            assert (batch[key][row, n:] == padding).all()
        assert (input_ids[row, :n].numpy() == sample["input_ids"]).all()
        assert (input_ids[row, n:] == PAD).all()
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (width - n)
        assert batch["next_sentence_label"][row] == sample["next_sentence_label"]
    assert torch.equal(batch["token_index"], batch["attention_mask"].flatten().nonzero()[:, 0])
    flat = batch["labels"].flatten()
    assert batch["prediction_index"].tolist() == [i for i, label in enumerate(flat.tolist()) if label != IGNORED_LABEL]


def test_batches_that_hold_nothing() -> None:
    rng = np.random.default_rng(1)
    padding = make_sample(4, rng)
    padding["input_ids"][:] = PAD
    with pytest.raises(ValueError, match="at least one sample"):
        padded_batch([])
    with pytest.raises(ValueError, match="all 2 samples of the batch are padding"):
        padded_batch([padding, make_sample(0, rng)])


@given(st.lists(st.integers(0, 5000), min_size=1))
def test_distinct_glyphs_is_numpys_unique(values: list[int]) -> None:
    ids, index = distinct_glyphs(np.array(values))
    expected_ids, expected_index = np.unique(np.array(values), return_inverse=True)
    assert (ids == expected_ids).all()
    assert (index == expected_index).all()


def test_distinct_glyphs_refuses() -> None:
    for values in ([], [3, -1]):
        with pytest.raises(ValueError, match="ids of 0 or more"):
            distinct_glyphs(np.array(values, np.int64))
