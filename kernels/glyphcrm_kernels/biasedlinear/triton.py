"""The linear layer with its bias gradient in Triton; products and bias are PyTorch's, that is cuBLAS'.

PyTorch sums a gradient ``(N, d)`` over its rows at a fifth of an H200's bandwidth. Here two launches of one kernel do
it: each program sums the tiles of rows that are its own, then the programs' sums are added up, in a fixed order.

Bytes moved: N d b read, d written, and 4 d for each of the programs that share a column. Nothing is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels._shared import buffers, targets
from glyphcrm_kernels._shared.gpus import triton_obstacle
from glyphcrm_kernels._shared.launch import Plan
from glyphcrm_kernels._shared.memo import remembered
from glyphcrm_kernels._shared.operators import is_batched, is_eager
from glyphcrm_kernels._shared.targets import Target, target_of
from glyphcrm_kernels.biasedlinear import tiles
from glyphcrm_kernels.biasedlinear import triton_kernels as kernels


def obstacle(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    """Return what keeps the kernel from running, or an empty string."""
    if found := triton_obstacle(x=x, weight=weight, bias=bias):
        return found
    eager = is_eager((x, weight, bias))
    return "" if eager else "a compiler, tracer or transform looks at the call; leave the gradient to PyTorch"


def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x @ weight.T + bias``."""
    if not (bias.requires_grad and torch.is_grad_enabled()):
        return F.linear(x, weight, bias)
    y: Tensor = _BiasGradient.apply(F.linear(x, weight, bias.detach()), bias)
    return y


class _BiasGradient(torch.autograd.Function):
    """y, to which the bias was added without autograd's knowledge."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        ctx.dtype = bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        dy = dy.contiguous()  # for the products that come next, too
        # The kernel has no second derivative, and takes one gradient at a time.
        if torch.is_grad_enabled() or is_batched((dy,)):
            wide = torch.promote_types(dy.dtype, torch.float32)
            return dy, dy.view(-1, dy.shape[-1]).sum(0, dtype=wide).to(ctx.dtype)
        return dy, column_sum(dy, ctx.dtype)


@remembered
def _plans(target: Target, multiprocessors: int, rows: int, d: int) -> tuple[Plan, Plan]:
    """Return the launch that leaves each program's sums, and the one that adds these up."""
    programs = tiles.programs(multiprocessors, rows, d)
    return _plan(target, tiles.VALUES, programs, rows, d), _plan(target, tiles.PARTIAL_SUMS, 1, programs, d)


def _plan(target: Target, tile: tiles.Tile, programs: int, rows: int, d: int) -> Plan:
    constants = {"D": d, "ROWS": tile.rows, "COLUMNS": tile.columns, "PARTS": tile.parts}
    warps = targets.warps(target, tiles.THREADS)
    return Plan(kernels._column_sum_kernel, (-(-d // tile.columns), programs), (rows,), constants, warps)


def column_sum(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(d,)`` in `dtype`: the sum of all rows of `values` ``(..., d)``, which is contiguous."""
    *lengths, d = values.shape
    rows = torch.Size(lengths).numel()
    of_values, of_sums = _plans(target_of(values.device), targets.multiprocessors(values.device), rows, d)
    partial_sums = buffers.empty(
        of_values.grid[1], d, like=values, dtype=torch.promote_types(values.dtype, torch.float32)
    )
    sums = buffers.empty(d, like=values, dtype=dtype)
    of_values.start(values, partial_sums)
    of_sums.start(partial_sums, sums)
    return sums
