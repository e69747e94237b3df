"""Small arguments for every op, in float32: what tests that go through all of them run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]


def _randn(device: str, *shape: int, scale: float = 1.0, constant: bool = False) -> Tensor:
    return (torch.randn(shape, device=device) * scale).requires_grad_(not constant)


def _add_norm(device: str) -> Arguments:
    x, residual, skip = (_randn(device, n, 8) for n in (6, 6, 3))
    weight, bias, index = _randn(device, 8), _randn(device, 8), torch.randint(3, (6,), device=device)
    return {"x": x, "residual": residual, "weight": weight, "bias": bias, "skip": skip, "index": index}


def _glyph_stem(device: str) -> Arguments:
    bitmaps = torch.randint(256, (5, 288), dtype=torch.uint8, device=device)
    return {
        "rows": torch.tensor([3, 1], device=device),
        "bitmaps": bitmaps,
        "weight": _randn(device, 4, 3, 3, 3),
        "bias": _randn(device, 4),
        "position_map": _randn(device, 2, 48, 48, constant=True),
    }


def _glyph_conv(device: str) -> Arguments:
    x, weight, residual = (
        _randn(device, 2, 4, 16, 16),
        _randn(device, 4, 4, 9, 9, scale=0.05),
        _randn(device, 2, 4, 8, 8),
    )
    return {"x": x, "weight": weight, "bias": _randn(device, 4), "residual": residual, "relu": True, "pool": True}


def _glyph_stem_conv(device: str) -> Arguments:
    first = {"conv_weight": _randn(device, 4, 4, 9, 9, scale=0.05), "conv_bias": _randn(device, 4)}
    return _glyph_stem(device) | first


def _dropout_attention(device: str) -> Arguments:
    query, key, value = (_randn(device, 2, 2, n, 4) for n in (3, 5, 5))
    # On, but below the smallest probability that 16 bits can hold: nothing is dropped, and results can be compared.
    return {"query": query, "key": key, "value": value, "scaling": 0.5, "p": 1e-9}


def _biased_linear(device: str) -> Arguments:
    return {"x": _randn(device, 2, 5, 6), "weight": _randn(device, 7, 6), "bias": _randn(device, 7)}


# By op; a device to the arguments of its function.
EXAMPLES: dict[str, Callable[[str], Arguments]] = {
    "add_norm": _add_norm,
    "glyph_stem": _glyph_stem,
    "glyph_conv": _glyph_conv,
    "glyph_stem_conv": _glyph_stem_conv,
    "dropout_attention": _dropout_attention,
    "biased_linear": _biased_linear,
}
