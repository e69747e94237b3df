"""Features to a batch, in the form that the model reads without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from glyphcrm.data.collator import MULTIPLE, pad, padded_inputs
from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.finetuning.encoding import Feature


@dataclass(frozen=True)
class FinetuningCollator:
    """Pads features to a batch.

    The length L of a batch is that of its longest feature, rounded up to a multiple of `MULTIPLE` as far as the model
    has positions.
    """

    pad_id: int
    positions: int  # the model's
    glyphs: bool  # whether it reads distinct glyphs (a GlyphCRM), or `input_ids` alone

    def __call__(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """Return int64 tensors for B features: those of `padded_inputs` that the model reads, and

        * `labels`: (B,) for texts, (B, L) for sentences to tag, -100 where none is.
        """
        longest = max(map(len, features))
        length = max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, self.positions))
        ids, types, labels = zip(*((f.input_ids, f.token_type_ids, f.labels) for f in features), strict=True)
        batch = padded_inputs(ids, types, length, self.pad_id)
        batch["labels"] = pad(labels, length, IGNORED_LABEL) if labels[0].ndim else np.array(labels)
        if not self.glyphs:
            del batch["glyph_ids"], batch["glyph_index"], batch["token_index"]
        return {name: torch.from_numpy(array) for name, array in batch.items()}
