"""Stem and first convolution: the definition, one after the other."""

from __future__ import annotations

from torch import Tensor

from glyphcrm_kernels.conv.api import glyph_conv
from glyphcrm_kernels.stem.api import glyph_stem


def one_after_the_other(
    rows: Tensor,
    bitmaps: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_map: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    backend: str = "reference",
) -> tuple[Tensor, Tensor]:
    """Return what `glyph_stem_conv` does, from implementations of `glyph_stem` and `glyph_conv`."""
    activation, shortcut = glyph_stem(rows, bitmaps, weight, bias, position_map, backend=backend)
    return glyph_conv(activation, conv_weight, conv_bias, relu=True, backend=backend), shortcut
