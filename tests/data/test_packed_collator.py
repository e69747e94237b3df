"""Samples packed into rows of a few fixed shapes: each sample once, whole, and nothing beside them that counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.data.packed_collator import PackedCollator, few_sizes
from tests.data.test_collator import PAD, make_sample

MAX_LENGTH = 24
LENGTHS = st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=30)


@given(LENGTHS, st.integers(MAX_LENGTH, 200), st.integers(0, 99))
def test_every_sample_stands_in_one_row(lengths: list[int], tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [make_sample(length, rng) for length in lengths]
    collator = PackedCollator(tokens, MAX_LENGTH)
    batches = collator(samples)
    found = []
    for batch in batches:
        length = batch["input_ids"].shape[1]
        ends = batch["cu_seq_lens_q"]
        assert length <= tokens and ends.shape == (collator.sequences + 1,) and ends.dtype == torch.int32
        assert batch["cu_seq_lens_k"] is ends and batch["max_length_q"] == batch["max_length_k"] == MAX_LENGTH
        assert ends[0] == 0 and ends[-1] == length and ends.diff().min() >= 0 and ends.diff().max() <= MAX_LENGTH
        for name in ("input_ids", "token_type_ids", "position_ids", "glyph_index"):
            assert batch[name].shape == (1, length) and batch[name].dtype == torch.int64
        assert torch.equal(batch["glyph_ids"][batch["glyph_index"]], batch["input_ids"])
        distinct = batch["input_ids"].unique()
        assert torch.equal(batch["glyph_ids"][: len(distinct)], distinct)
        assert (batch["glyph_ids"][len(distinct) :] == PAD).all()
        assert len(batch["glyph_ids"]) == few_sizes(len(distinct))

        labels = torch.full((length,), IGNORED_LABEL)
        is_label = batch["labels"] != IGNORED_LABEL
        assert (
            len(batch["prediction_index"].unique()) >= is_label.sum() and not batch["prediction_index"][~is_label].any()
        )
        labels[batch["prediction_index"][is_label]] = batch["labels"][is_label]
        for start, end, is_next in zip(ends[:-1], ends[1:], batch["next_sentence_label"], strict=True):
            assert batch["position_ids"][0, start:end].tolist() == list(range(end - start))
            if is_next == IGNORED_LABEL:
                assert (batch["input_ids"][0, start:end] == PAD).all() and (labels[start:end] == IGNORED_LABEL).all()
                continue
            parts = (batch["input_ids"][0], batch["token_type_ids"][0], labels)
            found.append((int(is_next), *(tuple(part[start:end].tolist()) for part in parts)))
    names = ("input_ids", "token_type_ids", "labels")
    expected = [
        (int(sample["next_sentence_label"]), *(tuple(sample[name].tolist()) for name in names)) for sample in samples
    ]
    assert sorted(found) == sorted(expected)
    again = collator(samples)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))


@given(LENGTHS, st.integers(MAX_LENGTH, 200))
def test_rows_are_as_full_as_first_fit_makes_them(lengths: list[int], tokens: int) -> None:
    """No two rows would fit into one, unless it held too many sequences; inside a row the order is kept."""
    collator = PackedCollator(tokens, MAX_LENGTH)
    collator.sequences = tokens
    rows = collator.rows(lengths)
    used = sorted(sum(lengths[i] for i in row) for row in rows)
    assert sum(used) == sum(lengths) and all(row == sorted(row) for row in rows)
    assert len(rows) == 1 or used[0] + used[1] > tokens
    assert all(n <= collator.row_length(n) < n + tokens / 8 + 8 for n in used)


@given(st.integers(1, 100_000))
def test_sizes_are_few_and_close(count: int) -> None:
    size = few_sizes(count)
    assert count <= size <= max(count * 9 / 8, count) and few_sizes(size) == size
    assert len({few_sizes(n) for n in range(1024, 2048)}) <= 9


def test_shapes_repeat_from_step_to_step() -> None:
    """All shapes of a row hang on its length, but for the distinct glyphs: 8 lengths, 2 sizes of labels at most."""
    rng = np.random.default_rng(0)
    collator = PackedCollator(512, 64)
    shapes: dict[int, set[tuple[int, ...]]] = {}
    for _ in range(60):
        samples = [make_sample(int(rng.integers(8, 65)), rng) for _ in range(20)]
        for sample in samples:
            sample["labels"][1:] = np.where(np.arange(1, len(sample["labels"])) % 7, IGNORED_LABEL, 5)
        for batch in collator(samples):
            fixed = tuple(batch[name].numel() for name in ("labels", "prediction_index", "next_sentence_label"))
            shapes.setdefault(batch["input_ids"].shape[1], set()).add(fixed)
    assert len(shapes) <= 8 and 512 in shapes and all(len(found) <= 2 for found in shapes.values())


def test_what_cannot_be_packed() -> None:
    rng = np.random.default_rng(1)
    with pytest.raises(ValueError, match=r"256 tokens cannot hold a sequence of 512; raise the token budget to 512"):
        PackedCollator(256, 512)
    collator = PackedCollator(256, 64)
    with pytest.raises(ValueError, match="at least one sample"):
        collator([])
    for length in (0, 65):
        with pytest.raises(ValueError, match=f"{length}.* tokens; each must have 1 to 64"):
            collator([make_sample(length, rng)])
