"""The fused operations of GlyphCRM, a folder each, importable without the rest of the project.

No folder or module has the name of a function that is imported here, which would hide it: `addnorm` has `add_norm`.
"""

from glyphcrm_kernels._shared.dispatch import BACKENDS, Choice
from glyphcrm_kernels.addnorm.api import add_norm
from glyphcrm_kernels.addnorm.module import AddNorm
from glyphcrm_kernels.attention.api import dropout_attention
from glyphcrm_kernels.biasedlinear.api import biased_linear
from glyphcrm_kernels.conv.api import glyph_conv
from glyphcrm_kernels.conv.module import GlyphConv
from glyphcrm_kernels.registry import choice
from glyphcrm_kernels.stem.api import glyph_stem
from glyphcrm_kernels.stem.module import GlyphStem
from glyphcrm_kernels.stem.reference import unpack_bits
from glyphcrm_kernels.stemconv.api import glyph_stem_conv

__all__ = [
    "BACKENDS",
    "AddNorm",
    "Choice",
    "GlyphConv",
    "GlyphStem",
    "add_norm",
    "biased_linear",
    "choice",
    "dropout_attention",
    "glyph_conv",
    "glyph_stem",
    "glyph_stem_conv",
    "unpack_bits",
]
