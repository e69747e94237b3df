"""Where all outputs of all kernels come from, so that a test can poison them."""

from __future__ import annotations

import torch
from torch import Tensor


def empty(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised contiguous tensor on the device of `like`, in its dtype unless one is given."""
    return like.new_empty(shape) if dtype is None else like.new_empty(shape, dtype=dtype)


def empty_nhwc(
    images: int, channels: int, height: int, width: int, *, like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Return an uninitialised ``(images, channels, height, width)`` in channels-last memory order.

    It is no view: autograd lets nobody change one in place that came out of a function.
    """
    strides = (height * width * channels, 1, width * channels, channels)
    return like.new_empty_strided((images, channels, height, width), strides, dtype=dtype or like.dtype)
