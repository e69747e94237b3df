"""Stem and first convolution: the definition, one after the other."""

from __future__ import annotations

from torch import Tensor

from glyphcrm_kernels.conv.api import glyph_conv
from glyphcrm_kernels.stem.api import glyph_stem


def one_after_the_other(*tensors: Tensor, backend: str = "reference") -> tuple[Tensor, Tensor]:
    """Return what `glyph_stem_conv` does, by `glyph_stem` and `glyph_conv`; arguments as there."""
    *stem, weight, bias = tensors
    activation, shortcut = glyph_stem(*stem, backend="triton" if backend == "hopper" else backend)
    return glyph_conv(activation, weight, bias, relu=True, backend=backend), shortcut
