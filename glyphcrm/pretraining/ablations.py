"""GlyphCRM with another part, to find out what that part does to learning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glyphcrm.modeling.hanglyph import GlyphVectors
from glyphcrm.modeling.heads import GlyphCRMForPreTraining


class FreeGlyphs(nn.Module):
    """Vector and skips of each atlas row as parameters, in HanGlyph's place: three embedding tables."""

    def __init__(self, start: GlyphVectors) -> None:
        super().__init__()
        self.before_tanh = nn.ParameterList(nn.Parameter(torch.atanh(vectors)) for vectors in start)

    def forward(self, rows: Tensor, bitmaps: Tensor) -> GlyphVectors:
        """As `HanGlyph.forward`."""
        return GlyphVectors(*(torch.tanh(F.embedding(rows, table)) for table in self.before_tanh))


@torch.no_grad()
def free_glyphs(model: GlyphCRMForPreTraining) -> None:
    """Replace HanGlyph by vectors that start where its own are and learn freely."""
    base = model.glyphcrm
    bitmaps = base.glyph_table.bitmaps
    vectors = base.hanglyph.all_vectors(torch.arange(len(bitmaps)), bitmaps)
    base.hanglyph = FreeGlyphs(vectors)  # type: ignore[assignment]
    model.config.glyph_cache = False  # which knows HanGlyph alone
