"""Add-norm in Triton: launches, operators and derivatives.

Fused: dropout, both additions, the gather of the skip rows, the normalisation; the sum z never reaches memory.

Bytes moved, N tokens of d elements of b bytes, U rows of skip:

    forward     reads x, residual; writes y                            3 N d b
    backward    reads dy, x, residual; writes dz [and dx]              4 N d b [5 with dropout]
    both        read a row of skip for every token: U d b from memory, the repetitions from the L2 cache
    dskip       reads dz, writes U rows; the order of the tokens comes from a sort of N 32-bit integers

dz is at once the gradient of residual, of the gathered skip rows and, without dropout, of x. On top come 8 N
bytes of statistics and the partial sums of dweight and dbias (8 d bytes for each backward program).

Kept for the backward: x, residual, skip, index, weight, mean and rstd of each token, and the seed of the
dropout mask. Not kept: z, the mask, a (tokens, d) copy of skip. The backward adds z up again, and draws the
mask again. Two other ways were rejected. Keeping z in x's place costs a write in the forward, inference included,
and saves one read in the backward: training moves the same bytes. Solving ``y = xhat * weight + bias`` for xhat would
save N d b bytes, but is wrong where a gain is near 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glyphcrm_kernels._shared import buffers, targets
from glyphcrm_kernels._shared.checks import check_index
from glyphcrm_kernels._shared.dropout import drop_below, new_seed
from glyphcrm_kernels._shared.gpus import triton_obstacle
from glyphcrm_kernels._shared.launch import Plan
from glyphcrm_kernels._shared.memo import remembered
from glyphcrm_kernels._shared.operators import operator
from glyphcrm_kernels._shared.targets import Target, target_of
from glyphcrm_kernels.addnorm import tiles
from glyphcrm_kernels.addnorm import triton_kernels as kernels
from glyphcrm_kernels.addnorm.reference import arithmetic

Tensors = tuple[Tensor, Tensor, Tensor]


def obstacle(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, *settings: object) -> str:
    """Return what keeps the kernels from running, or an empty string."""
    if found := triton_obstacle(x=x, residual=residual, weight=weight, bias=bias, skip=skip):
        return found
    d, largest = x.shape[-1], tiles.LARGEST_WIDTH
    return f"x has d={d}; the Triton kernels take up to {largest}: make it narrower" if d > largest else ""


def run(x: Tensor, *inputs: Any) -> Tensor:
    """Return y; arguments as in `add_norm_reference`."""
    residual, weight, bias, skip, index, p, eps = inputs
    if skip is not None:
        check_index("add_norm", "index", index, skip.shape[0])
    y: Tensor = _add_norm(x, residual, weight, bias, skip, index, new_seed(x.device) if p else None, p, eps)
    return y


@remembered
def _forward_plan(target: Target, tokens: int, d: int, rows: int, drop: int, eps: float) -> Plan:
    tile, block, warps = tiles.tile(target, d)
    constants = {"EPS": eps, "D": d, "ROWS": tile, "BLOCK": block}
    return Plan(kernels._add_norm_fwd_kernel, (-(-tokens // tile),), (tokens, rows, drop), constants, warps)


@operator("glyphcrm::add_norm", results=1)
def _add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    p: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return y, and mean and rstd as ``(2, ...)``."""
    x, residual, weight, bias, skip, index = _contiguous(x, residual, weight, bias, skip, index)
    dtype = torch.promote_types(x.dtype, residual.dtype)
    y = buffers.empty(*x.shape, like=x, dtype=dtype)
    statistics = buffers.empty(2, *x.shape[:-1], like=x, dtype=arithmetic(dtype))
    rows = 0 if skip is None else skip.shape[0]
    plan = _forward_plan(target_of(x.device), statistics.numel() // 2, x.shape[-1], rows, drop_below(p), eps)
    plan.start(x, residual, weight, bias, skip, index, seed, y, statistics)
    return y, statistics


@_add_norm.register_fake
def _(x: Tensor, residual: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(2, *x.shape[:-1], dtype=arithmetic(dtype))


@remembered
def _backward_plan(target: Target, multiprocessors: int, tokens: int, d: int, rows: int, drop: int) -> Plan:
    tile, block, warps = tiles.tile(target, d)
    programs = min(-(-tokens // tile), tiles.BACKWARD_PROGRAMS_A_MULTIPROCESSOR * multiprocessors)
    constants = {"D": d, "ROWS": tile, "BLOCK": block}
    return Plan(kernels._add_norm_bwd_kernel, (programs,), (tokens, rows, drop), constants, warps)


@operator("glyphcrm::add_norm_backward")
def _add_norm_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    statistics: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dz, dx (empty where dz serves), and dweight and dbias as ``(2, d)`` in the dtype of the arithmetic."""
    dy, x, residual, weight, skip, index = _contiguous(dy, x, residual, weight, skip, index)
    d, rows = x.shape[-1], 0 if skip is None else skip.shape[0]
    target, multiprocessors = target_of(x.device), targets.multiprocessors(x.device)
    plan = _backward_plan(target, multiprocessors, statistics.numel() // 2, d, rows, drop_below(p))
    dz = buffers.empty(*x.shape, like=dy)
    dx = buffers.empty(*x.shape, like=x) if _needs_own_dx(x, dz, seed) else None
    partial = buffers.empty(2, *plan.grid, d, like=statistics)
    plan.start(dy, x, residual, weight, statistics, skip, index, seed, dz, dx, partial)
    return dz, x.new_empty(0) if dx is None else dx, partial.sum(1)


@_add_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, *others: Any) -> Tensors:
    statistics, seed = others[2], others[5]
    dx = x.new_empty(x.shape if _needs_own_dx(x, dy, seed) else 0)
    return dy.new_empty(x.shape), dx, statistics.new_empty(2, x.shape[-1])


@remembered
def _segment_plan(target: Target, rows: int, d: int) -> Plan:
    columns, parts = tiles.SEGMENT_COLUMNS, tiles.SEGMENT_PARTS
    constants = {"D": d, "TOKENS": tiles.SEGMENT_TOKENS, "COLUMNS": columns, "PARTS": parts}
    warps = targets.warps(target, tiles.SEGMENT_THREADS)
    return Plan(kernels._segment_sum_kernel, (rows, -(-d // columns)), (), constants, warps)


@operator("glyphcrm::segment_sum")
def _segment_sum(values: Tensor, index: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return ``(rows, d)``: for each row the sum of the `values` ``(..., d)`` whose `index` it is, in their order.

    An index out of range is no row's.
    """
    values, index = _contiguous(values, index)
    d = values.shape[-1]
    # Half the passes of a radix sort of 64-bit integers; stable, so that the order of the additions is fixed.
    segment, order = index.flatten().to(torch.int32).sort(stable=True)
    starts = torch.searchsorted(segment, torch.arange(rows + 1, dtype=torch.int32, device=index.device))
    sums = buffers.empty(rows, d, like=values, dtype=dtype)
    _segment_plan(target_of(values.device), rows, d).start(values, order, starts, sums)
    return sums


@_segment_sum.register_fake
def _(values: Tensor, index: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    return values.new_empty(rows, values.shape[-1], dtype=dtype)


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _needs_own_dx(x: Tensor, dz: Tensor, seed: Tensor | None) -> bool:
    return seed is not None or x.dtype != dz.dtype


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, bias, skip, index, seed, ctx.p, _ = inputs
    _, statistics = output
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, residual, weight, statistics, skip, index, seed)
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)  # or zeros would be made as the gradient of the statistics


def _backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:  # nothing that is differentiated depends on y
        return (None,) * 9
    x, residual, weight, statistics, skip, index, seed = ctx.saved_tensors
    dz, dx, (dweight, dbias) = _add_norm_backward(dy, x, residual, weight, statistics, skip, index, seed, ctx.p)
    dskip = None
    if skip is not None and ctx.needs_input_grad[4]:
        dskip = _segment_sum(dz, index, skip.shape[0], skip.dtype)
    dx = dx if _needs_own_dx(x, dz, seed) else dz
    gradients = _cast(dz, residual.dtype), _cast(dweight, weight.dtype), _cast(dbias, ctx.bias_dtype)
    return dx, *gradients, dskip, None, None, None, None


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


_add_norm.register_autograd(_backward, setup_context=_keep)
