"""Glyph stem: the pictures' sizes, and the definition, in PyTorch."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels._shared.checks import autocast_dtype, check_index, has_autocast
from glyphcrm_kernels._shared.memory_order import channels_last

IMAGE_SIZE = 48
PACKED_BYTES = IMAGE_SIZE * IMAGE_SIZE // 8
POOLED_SIZE = IMAGE_SIZE // 2
TAPS = 9


def glyph_stem_reference(
    rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor
) -> tuple[Tensor, Tensor]:
    """Arguments and results as in `glyph_stem`."""
    check_index("glyph_stem", "rows", rows, bitmaps.shape[0])
    dtype = result_dtype(weight)
    constant = _constant_map(weight, bias, position_map).permute(2, 0, 1).to(dtype)
    ink = F.conv2d(unpack_bits(bitmaps[rows], dtype), weight[:, :1].to(dtype), padding=1)
    activation = F.relu(channels_last(ink + constant))
    return activation, F.max_pool2d(activation, 2)


def unpack_bits(bitmaps: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack ``(N, 288)`` uint8 (most significant bit first, row by row) to ``(N, 1, 48, 48)`` of 0 and 1."""
    bits = F.embedding(bitmaps.to(torch.int32), _bytes(bitmaps.device, dtype))
    return bits.view(-1, 1, IMAGE_SIZE, IMAGE_SIZE)


def _bytes(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return ``(256, 8)``, the bits of every byte, by operations that every exporter takes; shifts of bytes are not.

    All of it is made on the device: to copy a list there would wait for it, which no CUDA graph can record.
    """
    places = 2 ** torch.arange(7, -1, -1, device=device)
    return (torch.arange(256, device=device).unsqueeze(1) // places % 2).to(dtype)


def result_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of the activation: autocast's where that is on."""
    return autocast_dtype(weight) or weight.dtype


def taps_and_constant(weight: Tensor, bias: Tensor, position_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the kernels compute with: the picture's taps ``(9, C)`` and `_constant_map`, differentiable."""
    constant = _constant_map(weight, bias, position_map)
    return weight[:, 0].flatten(1).T.to(constant.dtype).contiguous(), constant


def _constant_map(weight: Tensor, bias: Tensor, position_map: Tensor) -> Tensor:
    """Return what the position channels and the bias add to every image: ``(48, 48, C)``, float32 or float64."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    # A matrix product, as cuDNN's convolution would by default round float32 to TF32.
    device = weight.device.type
    with torch.autocast(device, enabled=False) if has_autocast(device) else contextlib.nullcontext():
        patches = F.unfold(position_map.to(dtype).unsqueeze(0), 3, padding=1)[0]
        constant = torch.addmm(bias.to(dtype), patches.T, weight[:, 1:].flatten(1).T.to(dtype))
    return constant.view(IMAGE_SIZE, IMAGE_SIZE, -1)
