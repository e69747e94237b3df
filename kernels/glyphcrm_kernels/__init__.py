"""The fused operations of GlyphCRM: one file each, importable without the rest of the project."""

from glyphcrm_kernels.add_norm import add_norm
from glyphcrm_kernels.glyph_conv import glyph_conv
from glyphcrm_kernels.glyph_stem import glyph_stem, unpack_bits
from glyphcrm_kernels.modules import AddNorm

__all__ = ["AddNorm", "add_norm", "glyph_conv", "glyph_stem", "unpack_bits"]
