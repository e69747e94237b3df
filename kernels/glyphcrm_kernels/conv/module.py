"""Glyph convolution as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glyphcrm_kernels.conv.api import glyph_conv


class GlyphConv(nn.Conv2d):
    """A convolution and what follows it in one pass: bias, residual, ReLU, 2x2 max pooling.

    Its weights are those of an `nn.Conv2d`: state dict, initialisation, shapes.

    Args:
        in_channels, out_channels: C and K of `glyph_conv`.
        kernel_size: k, of a square filter.
        padding: zeros around the image, in pixels, less than k.
        bias: whether there is one.
        relu, pool: whether to clamp at zero, and to max-pool 2x2 behind that.
        device, dtype: of weight and bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        padding: int = 0,
        bias: bool = True,
        relu: bool = False,
        pool: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, bias=bias, device=device, dtype=dtype)
        self.relu, self.pool = relu, pool

    def forward(self, x: Tensor, residual: Tensor | None = None, backend: str = "auto") -> Tensor:
        """Return ``pool(relu(conv(x) + bias + residual))``; shapes, dtypes and errors as in `glyph_conv`."""
        assert isinstance(self.padding, tuple)
        return glyph_conv(
            x,
            self.weight,
            self.bias,
            residual=residual,
            relu=self.relu,
            pool=self.pool,
            padding=self.padding[0],
            backend=backend,
        )

    def extra_repr(self) -> str:
        """Show what follows the convolution beside what `nn.Conv2d` shows."""
        return f"{super().extra_repr()}, relu={self.relu}, pool={self.pool}"
