"""Add-norm: what the Triton kernels do on a GPU; triton.py starts them."""

from __future__ import annotations

from glyphcrm_kernels._shared.optional_triton import tl, triton


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
    rows,
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
        # An index out of range reads nothing, and makes its token NaN.
        known = inside & ((skip_row >= 0) & (skip_row < rows))[:, None]
        z += tl.load(skip + skip_row[:, None] * D + column[None, :], mask=known, other=float("nan")).to(ACC)
        z = tl.where(inside, z, 0.0)
    return z


@triton.jit(do_not_specialize=["rows"])
def _add_norm_fwd_kernel(
    x,  # (tokens, D)
    residual,  # (tokens, D)
    weight,  # (D,)
    bias,  # (D,)
    skip,  # (rows, D) or None
    index,  # (tokens,) or None
    seed,  # (1,) int64, or None without dropout
    y,  # (tokens, D)
    statistics,  # (2, tokens): mean and rstd
    tokens,
    rows,  # of skip, 0 without
    drop_below,  # of 65,536: an element is dropped if its 16 random bits are below
    EPS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = statistics.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < tokens)[:, None] & (column < D)[None, :]
    kept = inside
    if seed is not None:
        kept = _kept(seed, row, drop_below, D, ROWS, BLOCK)
    scale = tl.full([], 65536, ACC) / (65536 - drop_below)
    z = _sum_rows(x, residual, skip, index, row, column, tokens, rows, kept, scale, seed is not None, D, ACC)

    average = tl.sum(z, 1) / D
    centred = tl.where(inside, z - average[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / D + EPS)
    gain = tl.load(weight + column, mask=column < D, other=0.0).to(ACC)
    shift = tl.load(bias + column, mask=column < D, other=0.0).to(ACC)
    result = centred * inverse[:, None] * gain[None, :] + shift[None, :]
    tl.store(y + row[:, None] * D + column[None, :], result.to(y.dtype.element_ty), mask=inside)
    tl.store(statistics + row, average, mask=row < tokens)
    tl.store(statistics + tokens + row, inverse, mask=row < tokens)


@triton.jit(do_not_specialize=["rows"])
def _add_norm_bwd_kernel(
    dy,  # (tokens, D)
    x,  # (tokens, D)
    residual,  # (tokens, D)
    weight,  # (D,)
    statistics,  # (2, tokens): mean and rstd
    skip,  # (rows, D) or None
    index,  # (tokens,) or None
    seed,  # (1,) int64, or None without dropout
    dz,  # (tokens, D)
    dx,  # (tokens, D), or None where it equals dz
    partial,  # (2, programs, D): each program's share of dweight and dbias
    tokens,
    rows,  # of skip, 0 without
    drop_below,  # as in the forward
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = statistics.dtype.element_ty
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
        z = _sum_rows(x, residual, skip, index, row, column, tokens, rows, kept, scale, seed is not None, D, ACC)
        average = tl.load(statistics + row, mask=row < tokens, other=0.0)
        inverse = tl.load(statistics + tokens + row, mask=row < tokens, other=0.0)
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
