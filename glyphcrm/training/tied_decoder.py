"""A decoder whose rows move with the glyph vectors of their characters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glyphcrm.modeling.hanglyph import HanGlyph
from glyphcrm.modeling.model import GlyphCRMModel


class TiedDecoder:
    """Ties the decoder's rows to the glyph vectors of their characters, while HanGlyph's convolutions stand still.

    The decoder of a BERT is its embedding table: what one learns of a character, the other knows. A row of a GlyphCRM's
    is taken as the sum of the character's glyph vector and a rest of its own, and shares with HanGlyph what the two
    parts of a sum would: its gradient reaches the vector's projection, and it goes where that moves the vector. Both
    happen beside the optimiser's step, so that model, forward and checkpoints are what they are without them.

    All rows take part in every step. Their features are there while convolutions stand still (`HanGlyph.still`), and
    would be too much work otherwise: then nothing is tied.

    Args:
        hanglyph: makes the vectors.
        decoder: row i is of the character in row i of the atlas.
        autocast: gives the context of HanGlyph's forward.
    """

    def __init__(
        self, hanglyph: HanGlyph, decoder: nn.Linear, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._hanglyph, self._rows, self._autocast = hanglyph, decoder.weight, autocast
        self._vectors: Tensor | None = None  # before the step

    @classmethod
    def of(cls, model: PreTrainedModel, autocast: Callable[[], AbstractContextManager[Any]]) -> TiedDecoder | None:
        """Return what ties the decoder of a model that has one, and a HanGlyph; else None."""
        base, decoder = model.base_model, model.get_output_embeddings()
        if not isinstance(base, GlyphCRMModel) or not isinstance(base.hanglyph, HanGlyph) or decoder is None:
            return None
        return cls(base.hanglyph, decoder, autocast)

    def share_gradient(self) -> None:
        """Add to the gradient of the vectors' projection that of the rows, which is the whole step's."""
        vectors = self._all_vectors()
        if vectors is not None and self._rows.grad is not None:
            vectors.backward(self._rows.grad.to(vectors.dtype))
            self._vectors = vectors.detach()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the rows as far as the optimiser's step has moved the vectors."""
        before, self._vectors = self._vectors, None
        if before is not None and (vectors := self._all_vectors()) is not None:
            self._rows += vectors - before

    def _all_vectors(self) -> Tensor | None:
        """Return the glyph vector of each row, ``(rows, d)``; None while the convolutions move."""
        still = self._hanglyph.still
        if still is None:
            return None
        with self._autocast():
            return torch.tanh(self._hanglyph.vector(still.block2[: len(self._rows)]))
