"""How learnt position embeddings start."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LONGEST_WAVE = 10_000  # positions, over 2 pi


class PositionEmbedding(nn.Embedding):
    """An embedding table of positions, so that initialisation can tell it from others."""


def sinusoidal_positions(count: int, width: int, scale: float) -> Tensor:
    """Return the sine and cosine waves of arXiv:1706.03762 (section 3.5), ``(count, width)`` float32.

    A distance between two positions is then the same linear map everywhere, which attention can use from the first
    step; of normally distributed embeddings it has to be learnt. `scale` is their root mean square.
    """
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(LONGEST_WAVE) / width))
    angles = torch.arange(count).unsqueeze(1) * frequencies
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
    return waves * (scale * math.sqrt(2))
