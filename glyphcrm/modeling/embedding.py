"""HanGlyph in the place of an embedding table."""

from __future__ import annotations

from os import PathLike
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling.glyph_vectors.cache import GlyphCache
from glyphcrm.modeling.hanglyph import distinct
from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.modeling.packed_attention import is_traced


class HanGlyphEmbedding(nn.Module):
    """Token ids to the vectors of their pictures: stands where an `nn.Embedding` stood.

    An id is a row of the atlas. Each distinct id of a call is encoded once; in evaluation mode and without gradients,
    once ever, until weights or pictures change (see `GlyphCache`). The state dict has HanGlyph and the pictures;
    the projections of the glyph skips, which nothing reads here, are kept but take no gradient.

    Args:
        model: a GlyphCRM without heads, whose HanGlyph and pictures are taken, not copied.
    """

    def __init__(self, model: GlyphCRMModel) -> None:
        super().__init__()
        self.config = model.config
        self.glyph_table, self.hanglyph = model.glyph_table, model.hanglyph
        self.glyph_cache = GlyphCache()
        for unread in (self.hanglyph.skip1, self.hanglyph.skip2):
            unread.requires_grad_(False)

    @classmethod
    def from_atlas(cls, atlas: GlyphAtlas, embedding_dim: int, **settings: Any) -> Self:
        """Start with random weights whose vectors for the atlas are centred and uncorrelated.

        `settings` are of `GlyphCRMConfig`: `stem_channels`, `glyph_channels`, `glyph_initializer_spread` and others.
        """
        sizes: dict[str, Any] = {"hidden_size": embedding_dim, "vocab_size": len(atlas), "num_glyphs": len(atlas)}
        config = GlyphCRMConfig(**sizes, num_hidden_layers=0, num_attention_heads=1, **settings)
        return cls(GlyphCRMModel.from_atlas(config, atlas))

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str], **settings: Any) -> Self:
        """Take HanGlyph and pictures out of a saved GlyphCRM; arguments and errors as in its `from_pretrained`."""
        return cls(GlyphCRMModel.from_pretrained(directory, **settings))

    @property
    def num_embeddings(self) -> int:
        """Rows of the atlas."""
        return len(self.glyph_table.bitmaps)

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""
        return self.hanglyph.vector.out_features

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``(..., d)`` for `ids` ``(...)`` int64; raise `IndexError` for an id that is no row of the atlas."""
        if not ids.numel():
            return self.hanglyph.vector.weight.new_empty(*ids.shape, self.embedding_dim)
        bitmaps = self.glyph_table()
        if not is_traced():
            self._check(ids)
            if not self.training and not torch.is_grad_enabled():
                kept = self.glyph_cache.vectors(self.hanglyph, bitmaps, ids)
                if kept is not None:
                    return F.embedding(ids, kept.vector)
        rows, index = distinct(ids)
        return F.embedding(index, self.hanglyph(*self.glyph_table.pictures(rows, bitmaps)).vector)

    def _check(self, ids: Tensor) -> None:
        low, high = ids.aminmax()
        if low < 0 or high >= self.num_embeddings:
            bad = int(low) if low < 0 else int(high)
            raise IndexError(f"id {bad} is no row of the atlas (0 to {self.num_embeddings - 1})")

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch; training makes the kept vectors wrong."""
        if mode:
            self.glyph_cache.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self.glyph_cache.clear()
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        """Show the sizes as `nn.Embedding` does."""
        return f"{self.num_embeddings}, {self.embedding_dim}"
