"""Glyph vectors after `HanGlyph` has made them: shared over a step, kept at inference, kept in a file."""

from glyphcrm.modeling.glyph_vectors.cache import GlyphCache
from glyphcrm.modeling.glyph_vectors.file import DTYPES, VECTORS_FILE, save_vectors
from glyphcrm.modeling.glyph_vectors.share import SharedGlyphs
from glyphcrm.modeling.glyph_vectors.still import hold_convolutions

__all__ = ["DTYPES", "VECTORS_FILE", "GlyphCache", "SharedGlyphs", "hold_convolutions", "save_vectors"]
