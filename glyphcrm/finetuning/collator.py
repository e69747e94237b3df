"""Features to a batch, in the form that the model reads without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from glyphcrm.data.collator import distinct_glyphs
from glyphcrm.data.masking import IGNORED
from glyphcrm.finetuning.encoding import Feature


class FinetuningCollator:
    """Pads features to a batch.

    The length L of a batch is that of its longest feature, rounded up to a multiple of `MULTIPLE` as far as the model
    has positions.

    Args:
        pad_id: id of [PAD].
        positions: the model's.
        glyphs: whether the model reads distinct glyphs (a GlyphCRM), or ids.
    """

    MULTIPLE = 8

    def __init__(self, pad_id: int, positions: int, glyphs: bool) -> None:
        self.pad_id = pad_id
        self.positions = positions
        self.glyphs = glyphs

    def __call__(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """Return int64 tensors for B features.

        * `input_ids` (B, L), or instead `glyph_ids` (U,) and `glyph_index` (B, L) with
          input_ids == glyph_ids[glyph_index].
        * `attention_mask` (B, L): 1 for tokens, 0 for padding.
        * `token_type_ids` (B, L).
        * `labels`: (B,) for texts, (B, L) for sentences to tag, -100 where none is.
        """
        lengths = np.array([len(feature) for feature in features])
        longest = int(lengths.max())
        length = max(longest, min(-(-longest // self.MULTIPLE) * self.MULTIPLE, self.positions))
        shape = (len(features), length)
        input_ids = np.full(shape, self.pad_id, np.int64)
        token_type_ids = np.zeros(shape, np.int64)
        labels = np.full(shape if features[0].labels.ndim else shape[:1], IGNORED, np.int64)
        for row, (feature, n) in enumerate(zip(features, lengths.tolist(), strict=True)):
            input_ids[row, :n] = feature.input_ids
            token_type_ids[row, :n] = feature.token_type_ids
            if feature.labels.ndim:
                labels[row, :n] = feature.labels
            else:
                labels[row] = feature.labels
        batch = {
            "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int64),
            "token_type_ids": token_type_ids,
            "labels": labels,
        }
        if self.glyphs:
            batch["glyph_ids"], batch["glyph_index"] = distinct_glyphs(input_ids)
        else:
            batch["input_ids"] = input_ids
        return {name: torch.from_numpy(array) for name, array in batch.items()}
