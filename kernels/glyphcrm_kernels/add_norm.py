"""Add-norm: ``y = LayerNorm(dropout(x) + residual + skip[index])``.

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
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels import launch
from glyphcrm_kernels._triton import tl, triton
from glyphcrm_kernels.add_norm_cpu import add_norm_cpu, add_norm_fits_cpu
from glyphcrm_kernels.backend import check_index, use_triton
from glyphcrm_kernels.dropout import drop_below, new_seed
from glyphcrm_kernels.launch import Launch, Target, multiprocessors, target_of

LARGEST_WIDTH = 4096  # a program holds whole rows in its registers; wider ones spill on sm_90


def add_norm_reference(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    p: float,
    eps: float,
) -> Tensor:
    """The definition, in PyTorch; arguments as in `add_norm`, `p` = 0 outside of training."""
    dtype = torch.promote_types(x.dtype, residual.dtype)
    z = (F.dropout(x, p) if p else x) + residual
    if skip is not None and index is not None:
        # The backward of an embedding is the segment sum that this gather needs, and deterministic.
        z = z + F.embedding(index, skip).to(dtype)
    # Cast by hand: autocast would make the normalisation float32 anyway, but leave its result so.
    wide = _arithmetic(dtype)
    return F.layer_norm(z.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), eps).to(dtype)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# Kernels ---------------------------------------------------------------------------------------------


@triton.jit
def _kept(seed, row, drop_below, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return for a tile (ROWS, BLOCK) which elements dropout keeps: a function of the seed, the row and the column.

    The generator is Philox4x32-7: seven rounds are the fewest that pass all of BigCrush (Salmon et al., Parallel
    Random Numbers: As Easy as 1, 2, 3, 2011). One call gives 128 bits, 16 for each of 8 neighbouring elements,
    because ten rounds for each element would take longer than moving it.
    """
    eights: tl.constexpr = (D + 7) // 8
    counter = row[:, None] * eights + tl.arange(0, BLOCK // 8)[None, :]
    a, b, c, d = tl.randint4x(tl.load(seed), counter, 7)
    words = tl.join(tl.join(a, b), tl.join(c, d))
    # The new dimensions are the last ones, so the eight bits stay in the thread that made them.
    bits = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(bits, [ROWS, BLOCK]) >= drop_below


@triton.jit
def _sum_rows(
    x,  # (tokens, D)
    residual,  # (tokens, D)
    skip,  # (rows, D) or None
    index,  # (tokens,) or None
    row,  # the tile's tokens, int64
    column,  # the tile's columns
    tokens,
    kept,  # (ROWS, BLOCK), used if DROPOUT
    scale,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
):
    """Return a tile of z, 0 outside."""
    inside = (row < tokens)[:, None] & (column < D)[None, :]
    at = row[:, None] * D + column[None, :]
    z = tl.load(x + at, mask=inside, other=0.0).to(ACC)
    if DROPOUT:
        z = tl.where(kept, z * scale, 0.0)
    z += tl.load(residual + at, mask=inside, other=0.0).to(ACC)
    if skip is not None:
        skip_row = tl.load(index + row, mask=row < tokens, other=0).to(tl.int64)
        z += tl.load(skip + skip_row[:, None] * D + column[None, :], mask=inside, other=0.0).to(ACC)
    return z


@triton.jit
def _add_norm_fwd_kernel(
    x,  # (tokens, D)
    residual,  # (tokens, D)
    weight,  # (D,)
    bias,  # (D,)
    skip,  # (rows, D) or None
    index,  # (tokens,) or None
    seed,  # (1,) int64, or None without dropout
    y,  # (tokens, D)
    mean,  # (tokens,)
    rstd,  # (tokens,)
    tokens,
    drop_below,  # of 65,536: an element is dropped if its 16 random bits are below
    EPS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = mean.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < tokens)[:, None] & (column < D)[None, :]
    kept = inside
    if seed is not None:
        kept = _kept(seed, row, drop_below, D, ROWS, BLOCK)
    scale = tl.full([], 65536, ACC) / (65536 - drop_below)
    z = _sum_rows(x, residual, skip, index, row, column, tokens, kept, scale, seed is not None, D, ACC)

    average = tl.sum(z, 1) / D
    centred = tl.where(inside, z - average[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / D + EPS)
    gain = tl.load(weight + column, mask=column < D, other=0.0).to(ACC)
    shift = tl.load(bias + column, mask=column < D, other=0.0).to(ACC)
    result = centred * inverse[:, None] * gain[None, :] + shift[None, :]
    tl.store(y + row[:, None] * D + column[None, :], result.to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, average, mask=row < tokens)
    tl.store(rstd + row, inverse, mask=row < tokens)


@triton.jit
def _add_norm_bwd_kernel(
    dy,  # (tokens, D)
    x,  # (tokens, D)
    residual,  # (tokens, D)
    weight,  # (D,)
    mean,  # (tokens,)
    rstd,  # (tokens,)
    skip,  # (rows, D) or None
    index,  # (tokens,) or None
    seed,  # (1,) int64, or None without dropout
    dz,  # (tokens, D)
    dx,  # (tokens, D), or None where it equals dz
    partial,  # (2, programs, D): each program's share of dweight and dbias
    tokens,
    drop_below,  # as in the forward
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = mean.dtype.element_ty
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    gain = tl.load(weight + column, mask=column < D, other=0.0).to(ACC)
    scale = tl.full([], 65536, ACC) / (65536 - drop_below)
    dweight = tl.zeros([ROWS, BLOCK], ACC)
    dbias = tl.zeros([ROWS, BLOCK], ACC)
    for first in range(program * ROWS, tokens, programs * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < tokens)[:, None] & (column < D)[None, :]
        at = row[:, None] * D + column[None, :]
        kept = inside
        if seed is not None:
            kept = _kept(seed, row, drop_below, D, ROWS, BLOCK)
        z = _sum_rows(x, residual, skip, index, row, column, tokens, kept, scale, seed is not None, D, ACC)
        average = tl.load(mean + row, mask=row < tokens, other=0.0)
        inverse = tl.load(rstd + row, mask=row < tokens, other=0.0)
        normalised = tl.where(inside, z - average[:, None], 0.0) * inverse[:, None]
        outer = tl.load(dy + at, mask=inside, other=0.0).to(ACC)
        dweight += outer * normalised
        dbias += outer

        inner = outer * gain[None, :]
        along_mean = tl.sum(inner, 1) / D
        along_normalised = tl.sum(inner * normalised, 1) / D
        gradient = (inner - along_mean[:, None] - normalised * along_normalised[:, None]) * inverse[:, None]
        tl.store(dz + at, gradient.to(dz.dtype.element_ty), mask=inside)
        if dx is not None:
            if seed is not None:
                gradient = tl.where(kept, gradient * scale, 0.0)
            tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)
    of_program = partial + program.to(tl.int64) * D + column
    tl.store(of_program, tl.sum(dweight, 0), mask=column < D)
    tl.store(of_program + programs.to(tl.int64) * D, tl.sum(dbias, 0), mask=column < D)


@triton.jit
def _segment_sum_kernel(
    values,  # (tokens, D)
    order,  # (tokens,) int64: the tokens, those of one segment next to each other
    starts,  # (segments + 1,) int64: where in `order` each segment starts
    sums,  # (segments, D)
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start, end = tl.load(starts + segment), tl.load(starts + segment + 1)
    total = tl.zeros([PARTS, COLUMNS], ACC)
    for first in range(start, end, TOKENS):
        place = first + tl.arange(0, TOKENS)
        token = tl.load(order + place, mask=place < end, other=0)
        inside = (place < end)[:, None] & (column < D)[None, :]
        tile = tl.load(values + token[:, None] * D + column[None, :], mask=inside, other=0.0).to(ACC)
        # A thread adds up the rows it loaded itself; threads meet once, after the loop.
        total += tl.sum(tl.reshape(tile, [TOKENS // PARTS, PARTS, COLUMNS]), 0)
    # Written by the threads that hold 8 neighbouring columns, which a one-dimensional store would scatter.
    part = tl.arange(0, PARTS)[:, None]
    result = tl.sum(total, 0)[None, :] + tl.zeros([PARTS, COLUMNS], ACC)
    at = segment * D + part * 0 + column[None, :]
    tl.store(sums + at, result.to(sums.dtype.element_ty), mask=(part == 0) & (column < D)[None, :])


# Launches --------------------------------------------------------------------------------------------

# Tiles. A thread takes 8 neighbouring columns at a time: 16 bytes in 16-bit types.
ELEMENTS_A_PROGRAM = 2048  # whole rows, at least one
ELEMENTS_A_THREAD = 16
BACKWARD_PROGRAMS_A_MULTIPROCESSOR = 4
# 8 neighbouring columns of SEGMENT_PARTS tokens are what SEGMENT_THREADS load at once.
SEGMENT_TOKENS, SEGMENT_COLUMNS, SEGMENT_PARTS, SEGMENT_THREADS = 64, 128, 8, 128


def _tile(d: int) -> tuple[int, int, int]:
    """Return rows and columns (powers of two) of a program's tile, and its threads."""
    block = max(16, 1 << (d - 1).bit_length())
    rows = max(1, ELEMENTS_A_PROGRAM // block)
    return rows, block, rows * block // ELEMENTS_A_THREAD


def _warps(target: Target, threads: int) -> int:
    return threads // (64 if target.backend == "hip" else 32)


def add_norm_launch(
    target: Target,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    p: float,
    eps: float,
) -> Launch:
    """Return the forward's launch; all tensors contiguous."""
    tokens, d = mean.numel(), x.shape[-1]
    rows, block, threads = _tile(d)
    return Launch(
        kernel=_add_norm_fwd_kernel,
        grid=(-(-tokens // rows),),
        arguments={
            "x": x,
            "residual": residual,
            "weight": weight,
            "bias": bias,
            "skip": skip,
            "index": index,
            "seed": seed,
            "y": y,
            "mean": mean,
            "rstd": rstd,
            "tokens": tokens,
            "drop_below": drop_below(p),
        },
        constants={"EPS": eps, "D": d, "ROWS": rows, "BLOCK": block},
        num_warps=_warps(target, threads),
    )


def add_norm_backward_programs(x: Tensor) -> int:
    """Return how many programs, each with its partial sums, share the backward."""
    d = x.shape[-1]
    rows, _, _ = _tile(d)
    return min(-(-(x.numel() // d) // rows), BACKWARD_PROGRAMS_A_MULTIPROCESSOR * multiprocessors(x.device))


def add_norm_backward_launch(
    target: Target,
    dy: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    dz: Tensor,
    dx: Tensor | None,
    partial: Tensor,
    p: float,
) -> Launch:
    """Return the backward's launch; all tensors contiguous, `partial` is ``(2, programs, d)``."""
    d = x.shape[-1]
    rows, block, threads = _tile(d)
    return Launch(
        kernel=_add_norm_bwd_kernel,
        grid=(partial.shape[1],),
        arguments={
            "dy": dy,
            "x": x,
            "residual": residual,
            "weight": weight,
            "mean": mean,
            "rstd": rstd,
            "skip": skip,
            "index": index,
            "seed": seed,
            "dz": dz,
            "dx": dx,
            "partial": partial,
            "tokens": mean.numel(),
            "drop_below": drop_below(p),
        },
        constants={"D": d, "ROWS": rows, "BLOCK": block},
        num_warps=_warps(target, threads),
    )


def segment_sum_launch(target: Target, values: Tensor, order: Tensor, starts: Tensor, sums: Tensor) -> Launch:
    """Return the launch that adds up the rows of `values` segment by segment; all tensors contiguous."""
    segments, d = sums.shape
    return Launch(
        kernel=_segment_sum_kernel,
        grid=(segments, -(-d // SEGMENT_COLUMNS)),
        arguments={"values": values, "order": order, "starts": starts, "sums": sums},
        constants={
            "D": d,
            "TOKENS": SEGMENT_TOKENS,
            "COLUMNS": SEGMENT_COLUMNS,
            "PARTS": SEGMENT_PARTS,
        },
        num_warps=_warps(target, SEGMENT_THREADS),
    )


# Operators -------------------------------------------------------------------------------------------


@torch.library.custom_op("glyphcrm::add_norm", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, mean and rstd."""
    x, residual, weight, bias, skip, index = _contiguous(x, residual, weight, bias, skip, index)
    dtype = torch.promote_types(x.dtype, residual.dtype)
    y = launch.empty(*x.shape, like=x, dtype=dtype)
    mean = launch.empty(*x.shape[:-1], like=x, dtype=_arithmetic(dtype))
    rstd = launch.empty(*x.shape[:-1], like=x, dtype=_arithmetic(dtype))
    target = target_of(x.device)
    add_norm_launch(target, x, residual, weight, bias, skip, index, seed, y, mean, rstd, p, eps).run()
    return y, mean, rstd


@_add_norm.register_fake
def _(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    p: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, residual.dtype)
    mean = x.new_empty(x.shape[:-1], dtype=_arithmetic(dtype))
    return x.new_empty(x.shape, dtype=dtype), mean, torch.empty_like(mean)


@torch.library.custom_op("glyphcrm::add_norm_backward", mutates_args=())
def _add_norm_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dz, dx (empty where dz serves), and dweight and dbias as ``(2, d)`` in the dtype of the arithmetic."""
    dy, x, residual, weight, skip, index = _contiguous(dy, x, residual, weight, skip, index)
    dz = launch.empty(*x.shape, like=dy)
    dx = launch.empty(*x.shape, like=x) if _needs_own_dx(x, dz, seed) else None
    partial = launch.empty(2, add_norm_backward_programs(x), x.shape[-1], like=mean)
    target = target_of(x.device)
    add_norm_backward_launch(target, dy, x, residual, weight, mean, rstd, skip, index, seed, dz, dx, partial, p).run()
    return dz, x.new_empty(0) if dx is None else dx, partial.sum(1)


@_add_norm_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if _needs_own_dx(x, dy, seed) else 0)
    return dy.new_empty(x.shape), dx, mean.new_empty(2, x.shape[-1])


@torch.library.custom_op("glyphcrm::segment_sum", mutates_args=())
def _segment_sum(values: Tensor, index: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return ``(rows, d)``: for each row the sum of the `values` ``(..., d)`` whose `index` it is, in their order."""
    values, index = _contiguous(values, index)
    # Half the passes of a radix sort of 64-bit integers; stable, so that the order of the additions is fixed.
    segment, order = index.flatten().to(torch.int32).sort(stable=True)
    starts = torch.searchsorted(segment, torch.arange(rows + 1, dtype=torch.int32, device=index.device))
    sums = launch.empty(rows, values.shape[-1], like=values, dtype=dtype)
    segment_sum_launch(target_of(values.device), values, order, starts, sums).run()
    return sums


@_segment_sum.register_fake
def _(values: Tensor, index: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    return values.new_empty(rows, values.shape[-1], dtype=dtype)


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _needs_own_dx(x: Tensor, dz: Tensor, seed: Tensor | None) -> bool:
    return seed is not None or x.dtype != dz.dtype


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, bias, skip, index, seed, ctx.p, _ = inputs
    _, mean, rstd = output
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, residual, weight, mean, rstd, skip, index, seed)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # or zeros would be made as the gradients of mean and rstd


def _backward(ctx: Any, dy: Tensor | None, _mean: None, _rstd: None) -> tuple[Tensor | None, ...]:
    if dy is None:  # nothing that is differentiated depends on y
        return (None,) * 9
    x, residual, weight, mean, rstd, skip, index, seed = ctx.saved_tensors
    dz, dx, dparameters = _add_norm_backward(dy, x, residual, weight, mean, rstd, skip, index, seed, ctx.p)
    dskip = None
    if skip is not None and ctx.needs_input_grad[4]:
        dskip = _segment_sum(dz, index, skip.shape[0], skip.dtype)
    return (
        dx if _needs_own_dx(x, dz, seed) else dz,
        dz.to(residual.dtype),
        dparameters[0].to(weight.dtype),
        dparameters[1].to(ctx.bias_dtype),
        dskip,
        None,
        None,
        None,
        None,
    )


_add_norm.register_autograd(_backward, setup_context=_keep)


# Public ----------------------------------------------------------------------------------------------


def add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    skip: Tensor | None = None,
    index: Tensor | None = None,
    p: float = 0.0,
    eps: float = 1e-12,
    training: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Return ``LayerNorm(dropout(x) + residual + skip[index])``.

    With `skip` this is the three-way add-norm that ends GlyphCRM's first two blocks (FFN output,
    attention output, glyph); without, it is BERT's. Dropout falls on `x` alone; the kernels round its
    probability to a multiple of 1/65,536.

    Args:
        x: ``(..., d)``, the output of a sub-layer.
        residual: ``(..., d)``, what went into that sub-layer.
        weight: ``(d,)``, the gain of the normalisation.
        bias: ``(d,)``, its shift.
        skip: ``(rows, d)``, one row for each distinct character; given together with `index`.
        index: ``(...)`` int64 or int32, for each token its row in `skip`.
        p: dropout probability in [0, 1), used when `training`.
        eps: added to the variance.
        training: whether dropout is on.
        backend: "auto", "triton" or "reference".

    Returns:
        ``(..., d)`` in the dtype to which PyTorch promotes those of `x` and `residual`, under autocast,
        too. The sum is normalised in float32 (float64 if that is the dtype), each gradient has the dtype of its input.

    Raises:
        ValueError: shapes or dtypes that do not fit, `skip` without `index` or the other way round, an index
            out of range (on a GPU: see `backend.check_index`), `p` outside [0, 1), `eps` below 0, or what
            `backend.use_triton` raises.
    """
    d = x.shape[-1] if x.dim() else 0
    given = {"x": x, "residual": residual, "weight": weight, "bias": bias, "skip": skip}
    for name, tensor in given.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"add_norm: {name} is {tensor.dtype}; it must be floating point")
    if not d:
        raise ValueError(f"add_norm: x has shape {tuple(x.shape)}; it must be (..., d) with d at least 1")
    if residual.shape != x.shape:
        raise ValueError(f"add_norm: residual has shape {tuple(residual.shape)}; x has {tuple(x.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (d,):
            raise ValueError(f"add_norm: {name} has shape {tuple(tensor.shape)}; it must be ({d},)")
    if eps < 0:
        raise ValueError(f"add_norm: eps={eps} must be 0 or more")
    if not 0 <= p < 1:
        raise ValueError(f"add_norm: p={p} must be in [0, 1)")
    if skip is not None and index is not None:
        if skip.dim() != 2 or skip.shape[1] != d:
            raise ValueError(f"add_norm: skip has shape {tuple(skip.shape)}; it must be (rows, {d})")
        if index.shape != x.shape[:-1]:
            raise ValueError(f"add_norm: index has shape {tuple(index.shape)}; it must be {tuple(x.shape[:-1])}")
        check_index("add_norm", "index", index, skip.shape[0])
    elif skip is not None or index is not None:
        missing = "index" if index is None else "skip"
        raise ValueError(f"add_norm: {missing} is missing; skip and index go together, give both or neither")

    p = p if training else 0.0
    triton_runs = use_triton("add_norm", backend, **given, index=index)
    if triton_runs and d > LARGEST_WIDTH:
        if backend == "triton":
            raise ValueError(
                f"add_norm: x has d={d}; the Triton kernels take up to {LARGEST_WIDTH}, backend='auto' any"
            )
        triton_runs = False
    cpu_runs = not triton_runs and backend == "auto" and add_norm_fits_cpu(x, residual, weight, bias, skip)
    if not triton_runs and not cpu_runs:
        return add_norm_reference(x, residual, weight, bias, skip, index, p, eps)
    seed = new_seed(x.device) if p else None
    if cpu_runs:
        index = None if index is None else index.long()
        y, _, _ = add_norm_cpu(x, residual, weight, bias, skip, index, seed, drop_below(p), eps)
    else:
        y, _, _ = _add_norm(x, residual, weight, bias, skip, index, seed, p, eps)
    return y
