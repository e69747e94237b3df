"""How learnt position embeddings start."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LONGEST_WAVE = 10_000  # positions, over 2 pi


class PositionEmbedding(nn.Embedding):
    """An embedding table of positions, so that initialisation can tell it from others."""


def sinusoidal_positions(count: int, width: int, scale: float) -> Tensor:
    """Return the waves of arXiv:1706.03762 (section 3.5), ``(count, width)`` float32, their root mean square `scale`.

    A distance between two positions is then the same linear map everywhere, which else has to be learnt.
    """
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(LONGEST_WAVE) / width))
    angles = torch.arange(count).unsqueeze(1) * frequencies
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
    return waves * (scale * math.sqrt(2))
