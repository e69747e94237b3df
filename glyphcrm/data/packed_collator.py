"""Samples to packed batches of a few fixed shapes: rows without padding, filled to a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from glyphcrm.data.collator import Ids, distinct_glyphs
from glyphcrm.data.masking import IGNORED_LABEL, MASK_PROBABILITY
from glyphcrm.data.pretraining import Sample
from glyphcrm.tokens import PAD_ID

PARTS = 8  # a row that the samples leave emptier is so many eighths of the budget long
MULTIPLE = 8  # of all row lengths
SHORTEST = 4  # sequences of a full row are on average at least 1/4 as long as the longest may be

PackedBatch = dict[str, Any]


def few_sizes(count: int) -> int:
    """Return the size to which `count` items are filled up: at most an eighth more, 8 sizes for each doubling."""
    step = 1 << max(count.bit_length() - 4, 0)
    return -(-count // step) * step


class PackedCollator:
    """Packs the samples of an optimiser step, or of one process's share of it, into micro-batches.

    Each micro-batch is one row of at most `tokens` tokens. The samples are put, the longest first, each into the first
    row where there is room for it, which leaves no more than some thousandths of a row empty but for the last one; that
    one is shortened by eighths of `tokens`. In a row they keep their order. The same samples always give the same rows.

    Shapes depend on few things, so that CUDA graphs of few sizes serve a whole training: all on the row's length T, but
    the number of distinct glyphs, which is filled up to `few_sizes`.

    Args:
        tokens: the budget of a micro-batch.
        max_length: of the longest sample; at most the positions of the model.
        mask_probability: the share of tokens to predict, for which there is room in every row.

    Raises `ValueError` if `tokens` are fewer than `max_length`, or a number is below 1.
    """

    def __init__(self, tokens: int, max_length: int, mask_probability: float = MASK_PROBABILITY) -> None:
        if max_length < 1 or tokens < max_length:
            raise ValueError(
                f"a micro-batch of {tokens} tokens cannot hold a sequence of {max_length}; raise the token budget to "
                f"{max_length} or more, or shorten the sequences"
            )
        self.tokens = tokens
        self.max_length = max_length
        # Of a row at most: they bind only where samples are on average shorter than a quarter of `max_length`.
        self.sequences = SHORTEST * -(-tokens // max_length)
        self.mask_probability = mask_probability

    def __call__(self, samples: Sequence[Sample]) -> list[PackedBatch]:
        """Return the micro-batches: int64 tensors but for cu_seq_lens, int32, and the two numbers.

        * `input_ids`, `token_type_ids`, `position_ids`, `glyph_index`: (1, T).
        * `glyph_ids` (U,): the distinct input ids, sorted, then [PAD] until the size is one of a few;
          input_ids == glyph_ids[glyph_index].
        * `cu_seq_lens_q`, `cu_seq_lens_k` (S + 1,): where each sequence starts, S = `sequences`. Behind the samples
          come sequences of padding, at most `max_length` long, then empty ones, which start at T.
        * `max_length_q`, `max_length_k`: `max_length`, a Python int.
        * `prediction_index` (M,): the places to predict, then zeros; `labels` (M,): the ids there, then -100.
        * `next_sentence_label` (S,): -100 for sequences that are no samples.

        Raises `ValueError` if there is no sample, an empty one, or one longer than `max_length`.
        """
        lengths = [len(sample["input_ids"]) for sample in samples]
        if not samples:
            raise ValueError("a batch needs at least one sample")
        if min(lengths) < 1 or max(lengths) > self.max_length:
            raise ValueError(
                f"samples have {min(lengths)} to {max(lengths)} tokens; each must have 1 to {self.max_length}"
            )
        return [self._batch([samples[i] for i in row]) for row in self.rows(lengths)]

    def rows(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the samples of each row, by their numbers, for the lengths of all samples."""
        rows: list[list[int]] = []
        used: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            fits = (row for row in range(len(rows)) if self._fits(len(rows[row]) + 1, used[row] + lengths[i]))
            row = next(fits, len(rows))
            if row == len(rows):
                rows.append([])
                used.append(0)
            rows[row].append(i)
            used[row] += lengths[i]
        return [sorted(row) for row in rows]

    def _fits(self, samples: int, used: int) -> bool:
        padding = self.row_length(used) - used
        return padding >= 0 and samples + -(-padding // self.max_length) <= self.sequences

    def row_length(self, used: int) -> int:
        """Return the length T of a row that holds `used` tokens."""
        part = -(-self.tokens // (PARTS * MULTIPLE)) * MULTIPLE
        return min(-(-used // part) * part, self.tokens)

    def _batch(self, samples: list[Sample]) -> PackedBatch:
        lengths = [len(sample["input_ids"]) for sample in samples]
        used = sum(lengths)
        length = self.row_length(used)
        full, rest = divmod(length - used, self.max_length)
        lengths += [self.max_length] * full + [rest] * (rest > 0)
        boundaries = np.full(self.sequences + 1, length, np.int32)
        boundaries[: len(lengths)] = np.cumsum([0, *lengths[:-1]])

        ids = _joined(samples, "input_ids", length, PAD_ID)
        labels = _joined(samples, "labels", length, IGNORED_LABEL)
        places = np.flatnonzero(labels != IGNORED_LABEL)
        room = max(len(places), round(length * self.mask_probability))
        glyph_ids, glyph_index = distinct_glyphs(ids)
        row = {
            "input_ids": ids,
            "token_type_ids": _joined(samples, "token_type_ids", length, 0),
            "position_ids": np.concatenate([np.arange(n) for n in lengths]),
            "glyph_index": glyph_index,
        }
        arrays = {
            **{name: array[np.newaxis] for name, array in row.items()},
            "glyph_ids": _filled(glyph_ids, few_sizes(len(glyph_ids)), PAD_ID),
            "prediction_index": _filled(places, few_sizes(room), 0),
            "labels": _filled(labels[places], few_sizes(room), IGNORED_LABEL),
            "next_sentence_label": _filled(
                np.array([sample["next_sentence_label"] for sample in samples]), self.sequences, IGNORED_LABEL
            ),
            "cu_seq_lens_q": boundaries,
        }
        batch: PackedBatch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch["cu_seq_lens_k"] = batch["cu_seq_lens_q"]
        return batch | {"max_length_q": self.max_length, "max_length_k": self.max_length}


def _filled(items: Ids, length: int, value: int) -> Ids:
    """Return the items (n,) as (length,) int64, with `value` behind them."""
    filled = np.full(length, value, np.int64)
    filled[: len(items)] = items
    return filled


def _joined(samples: list[Sample], name: str, length: int, value: int) -> Ids:
    return _filled(np.concatenate([sample[name] for sample in samples]), length, value)
