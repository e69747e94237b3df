"""Samples to a batch: padded, with every distinct character named once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.data.pretraining import Sample
from glyphcrm.tokens import PAD_ID

Ids = npt.NDArray[np.int64]

MULTIPLE = 8  # batches are padded to a multiple of this length


def pad(rows: Sequence[Ids], length: int, value: int) -> Ids:
    """Return the B rows, each of at most `length` items, as (B, length) int64, filled up with `value`."""
    padded = np.full((len(rows), length), value, np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def distinct_glyphs(input_ids: Ids) -> tuple[Ids, Ids]:
    """Return the sorted distinct ids (U,) and, for each token, its index among them.

    `input_ids` is of any shape, ids 0 or more; input_ids == ids[index], and index has its shape.
    Raises `ValueError` if `input_ids` is empty or holds a negative id.
    """
    if input_ids.size == 0 or input_ids.min() < 0:
        raise ValueError(f"expected ids of 0 or more, got shape {input_ids.shape}")
    # A table over the ids: 16 times as fast as np.unique, which sorts.
    table = np.zeros(int(input_ids.max()) + 1, np.int64)
    table[input_ids] = 1
    ids = np.flatnonzero(table)
    table[ids] = np.arange(len(ids))
    return ids, table[input_ids]


def padded_inputs(input_ids: Sequence[Ids], token_type_ids: Sequence[Ids], length: int, pad_id: int) -> dict[str, Ids]:
    """Return what a model reads of B token sequences, padded to L = `length` tokens; all int64.

    `input_ids`, `token_type_ids` and `attention_mask` (1 for tokens, 0 for padding) are (B, L). `token_index` (T,):
    where the flattened mask is 1; its length tells the host how many these are when the mask is on a GPU. `glyph_ids`
    (U,) are the distinct input ids, sorted, padding included; `glyph_index` (B, L): where each id stands in them.
    """
    ids = pad(input_ids, length, pad_id)
    glyph_ids, glyph_index = distinct_glyphs(ids)
    is_token = np.arange(length) < np.array([[len(row)] for row in input_ids])
    return {
        "input_ids": ids,
        "token_type_ids": pad(token_type_ids, length, 0),
        "attention_mask": is_token.astype(np.int64),
        "token_index": np.flatnonzero(is_token),
        "glyph_ids": glyph_ids,
        "glyph_index": glyph_index,
    }


def padded_batch(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Pad samples of `PretrainingStream` to the longest of them, rounded up to a multiple of `MULTIPLE`.

    Returns int64 tensors: those of `padded_inputs`, and the labels. These are `labels` (B, L), -100 where nothing is
    predicted, `prediction_index` (M,), where labels.flatten() is not -100, and `next_sentence_label` (B,).

    Raises `ValueError` if there is no sample, or nothing but padding in all of them.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    input_ids, token_type_ids, labels = (
        [sample[name] for sample in samples] for name in ("input_ids", "token_type_ids", "labels")
    )
    if all((ids == PAD_ID).all() for ids in input_ids):
        raise ValueError(f"all {len(samples)} samples of the batch are padding")
    length = -(-max(map(len, input_ids)) // MULTIPLE) * MULTIPLE
    padded_labels = pad(labels, length, IGNORED_LABEL)
    batch = {
        **padded_inputs(input_ids, token_type_ids, length, PAD_ID),
        "labels": padded_labels,
        "prediction_index": np.flatnonzero(padded_labels != IGNORED_LABEL),
        "next_sentence_label": np.array([sample["next_sentence_label"] for sample in samples], np.int64),
    }
    return {name: torch.from_numpy(array) for name, array in batch.items()}
