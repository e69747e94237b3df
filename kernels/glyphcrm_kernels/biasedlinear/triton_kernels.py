"""The linear layer: what the Triton kernel does on a GPU; triton.py starts it."""

from __future__ import annotations

from glyphcrm_kernels._shared.optional_triton import tl, triton


@triton.jit
def _column_sum_kernel(
    values,  # (rows, D)
    sums,  # (programs, D): of each program the sum of its rows
    rows,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    program, programs = tl.program_id(1), tl.num_programs(1)
    total = tl.zeros([PARTS, COLUMNS], ACC)
    for first in range(program * ROWS, rows, programs * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < D)[None, :]
        tile = tl.load(values + row[:, None] * D + column[None, :], mask=inside, other=0.0).to(ACC)
        # A thread adds up the rows it loaded itself; threads meet once, after the loop.
        total += tl.sum(tl.reshape(tile, [ROWS // PARTS, PARTS, COLUMNS]), 0)
    # Written by the threads that hold neighbouring columns, which a one-dimensional store would scatter.
    part = tl.arange(0, PARTS)[:, None]
    result = tl.sum(total, 0)[None, :] + tl.zeros([PARTS, COLUMNS], ACC)
    at = program.to(tl.int64) * D + part * 0 + column[None, :]
    tl.store(sums + at, result.to(sums.dtype.element_ty), mask=(part == 0) & (column < D)[None, :])
