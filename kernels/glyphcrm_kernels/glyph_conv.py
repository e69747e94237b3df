"""Glyph convolution: k x k convolution with the epilogue of a HanGlyph residual block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def glyph_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    pool: bool = False,
    padding: int = 0,
) -> Tensor:
    """Return ``pool(relu(conv(x) + bias + residual))``, each step of the epilogue when asked for.

    Args:
        x: ``(U, C, H, W)``, channels-last memory order preferred (a third of the time on a CPU).
        weight: ``(K, C, k, k)``.
        bias: ``(K,)``.
        residual: ``(U, K, H', W')``, added before the ReLU.
        relu: whether to clamp at zero.
        pool: whether to max-pool 2x2 with stride 2.
        padding: zeros around `x`, in pixels.

    Returns:
        ``(U, K, H', W')`` with ``H' = H + 2 padding - k + 1``, halved by `pool`.

    Raises:
        ValueError: `residual` does not have the shape of the convolution's output.
    """
    y = F.conv2d(x, weight, bias, padding=padding)
    if residual is not None:
        if residual.shape != y.shape:
            raise ValueError(f"residual has shape {tuple(residual.shape)}; the convolution gives {tuple(y.shape)}")
        y = y + residual
    if relu:
        y = F.relu(y)
    return F.max_pool2d(y, 2) if pool else y
