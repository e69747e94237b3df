"""Glyph stem: from packed bits to the first convolution's activation and its pooled shortcut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 48
PACKED_BYTES = IMAGE_SIZE * IMAGE_SIZE // 8


def unpack_bits(bitmaps: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack ``(N, 288)`` uint8 (most significant bit first, row by row) to ``(N, 1, 48, 48)`` of 0 and 1."""
    shifts = torch.arange(7, -1, -1, device=bitmaps.device, dtype=torch.uint8)
    bits = (bitmaps.unsqueeze(-1) >> shifts) & 1
    return bits.view(-1, 1, IMAGE_SIZE, IMAGE_SIZE).to(dtype)


def glyph_stem(
    rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``relu(conv3x3([image, x, y]))`` of the wanted glyphs, and that pooled 2x2.

    The two position channels are the same for every glyph, so their share of the convolution is
    one ``(C, 48, 48)`` map, computed once and added like a bias.

    Args:
        rows: ``(U,)`` int64, the atlas rows to draw.
        bitmaps: ``(N, 288)`` uint8, the atlas: bit-packed 48x48 images, ink = 1.
        weight: ``(C, 3, 3, 3)``, input channels image, x, y.
        bias: ``(C,)``.
        position_map: ``(2, 48, 48)``, the position channels x and y.

    Returns:
        The activation ``(U, C, 48, 48)`` and the max-pooled shortcut ``(U, C, 24, 24)``, both in
        channels-last memory order (NHWC).

    Raises:
        ValueError: an argument has the wrong shape or dtype.
    """
    if bitmaps.dtype != torch.uint8 or bitmaps.shape[1:] != (PACKED_BYTES,):
        raise ValueError(f"bitmaps must be (N, {PACKED_BYTES}) uint8, not {tuple(bitmaps.shape)} {bitmaps.dtype}")
    if weight.shape[1:] != (3, 3, 3):
        raise ValueError(f"weight must be (C, 3, 3, 3), not {tuple(weight.shape)}")
    images = unpack_bits(bitmaps[rows], weight.dtype)
    constant = F.conv2d(position_map.unsqueeze(0).to(weight.dtype), weight[:, 1:], bias, padding=1)
    ink = F.conv2d(images, weight[:, :1], padding=1)
    activation = F.relu((ink + constant).contiguous(memory_format=torch.channels_last))
    return activation, F.max_pool2d(activation, 2)
