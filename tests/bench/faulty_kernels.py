"""Kernels that each break one budget of the static report, and one that breaks none; run as a program.

Prints as JSON, for each kernel, what the report says against it on sm_90.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
import triton.language as tl
from glyphcrm_kernels._shared.launch import Launch
from glyphcrm_kernels._shared.targets import Target

from bench.static_report import examine


@triton.jit
def _sound_kernel(x, y, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at) * 2)


@triton.jit
def _spilling_kernel(x, y, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tile = tl.load(x + at)
    # The sum must be known before any element can be stored, so all of them stay in registers.
    tl.store(y + at, tile / tl.sum(tile))


@triton.jit
def _misaligned_kernel(x, y, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at + 1))


@triton.jit
def _atomic_kernel(x, y, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.atomic_add(y, tl.sum(tl.load(x + at)))


@triton.jit
def _product_kernel(x, y, SIZE: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for step in range(STEPS):
        left, right = tl.load(x + step * SIZE * SIZE + at), tl.load(y + step * SIZE * SIZE + at)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(y + at, total.to(y.dtype.element_ty))


def _launch(
    kernel: Any, dtype: torch.dtype = torch.float32, warps: int = 4, stages: int = 3, **constants: Any
) -> Launch:
    x, y = (torch.empty(1 << 20, dtype=dtype, device="meta") for _ in range(2))
    return Launch(kernel, (1,), {"x": x, "y": y}, constants, warps, stages)


LAUNCHES = {
    "sound": _launch(_sound_kernel, SIZE=1024),
    "sound dot": _launch(_product_kernel, torch.float16, SIZE=64, STEPS=16, PRECISION="tf32"),
    "spills": _launch(_spilling_kernel, warps=1, SIZE=16384),
    "misaligned": _launch(_misaligned_kernel, SIZE=1024),
    "atomic": _launch(_atomic_kernel, SIZE=1024),
    "dot without tensor cores": _launch(_product_kernel, SIZE=32, STEPS=16, PRECISION="ieee"),
    "shared memory": _launch(_product_kernel, torch.float16, warps=8, stages=6, SIZE=128, STEPS=16, PRECISION="tf32"),
}

if __name__ == "__main__":
    target = Target("cuda", 90)
    print(json.dumps({name: examine(launch, target).violations for name, launch in LAUNCHES.items()}))
