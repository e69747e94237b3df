"""What the machine can do: bytes a second in a large copy, FLOP a second in a large matrix product.

A kernel's speed as a share of these says how much is left; a data sheet's peak is never reached.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from bench.clock import clock_for

REPEATS = 5


@cache
def bandwidth(device: str) -> float:
    """Return GB/s of memory: bytes read plus bytes written by a copy much larger than any cache."""
    source = torch.empty(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _least_seconds(device, lambda: target.copy_(source)) / 1e9


@cache
def arithmetic(device: str, dtype: torch.dtype) -> float:
    """Return TFLOP/s of a matrix product; in float32 a GPU may also take three of TF32, as the kernels do."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    rate = 2 * n**3 / _least_seconds(device, lambda: a @ b) / 1e12
    if device == "cuda" and dtype == torch.float32:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            rate = max(rate, 2 * n**3 / _least_seconds(device, lambda: a @ b) / 1e12 / 3)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return rate


def ceiling(device: str, unit: str, dtype: torch.dtype) -> float:
    """Return the ceiling of a speed in "GB/s" or "TFLOP/s"."""
    return bandwidth(device) if unit == "GB/s" else arithmetic(device, dtype)


def _least_seconds(device: str, call: Callable[[], object]) -> float:
    clock = clock_for(device)
    clock.prepare(call)
    seconds = []
    for _ in range(REPEATS):
        clock.hold()
        start = clock()
        for _ in range(clock.calls):
            call()
        seconds.append(float(clock() - start))  # type: ignore[operator]
    return min(seconds)
