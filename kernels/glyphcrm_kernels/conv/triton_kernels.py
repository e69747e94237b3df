"""Glyph convolution: what the Triton kernels do on a GPU; triton.py starts them."""

from __future__ import annotations

from glyphcrm_kernels._shared.optional_triton import tl, triton


@triton.jit
def _pixel(m, POOL: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr):
    """Return image, row and column of the m-th pixel: row by row or, for pooling, window by window."""
    if POOL:
        window = m // 4
        u = window // ((OH // 2) * (OW // 2))
        y = window // (OW // 2) % (OH // 2) * 2 + m % 4 // 2
        x = window % (OW // 2) * 2 + m % 2
    else:
        u = m // (OH * OW)
        y = m // OW % OH
        x = m % OW
    return u, y, x


@triton.jit
def _inside(
    row,
    column,
    dy,
    start,  # j[0]
    j,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK: tl.constexpr,  # len(j)
):
    """Return ``(pixels, j)``: whether the input that the filter's place (dy, j) meets lies in the image."""
    # As unsigned numbers, those below 0 are too large as well.
    y = (row + (dy - PADDING)).to(tl.uint32)
    if C % BLOCK == 0:  # the block lies within one pixel
        x = (column + (start // C - PADDING)).to(tl.uint32)
        inside = ((y < H) & (x < W))[:, None]
    else:
        x = (column[:, None] + (j // C - PADDING)[None, :]).to(tl.uint32)
        inside = (y < H)[:, None] & (x < W)
    return inside


@triton.jit
def _glyph_conv_fwd_kernel(
    x,  # (U, H, W, C)
    weight,  # (K, k, k, C)
    bias,  # (K,) or None
    residual,  # (U, OH, OW, K) or None
    out,  # (U, OH, OW, K), or with POOL (U, OH/2, OW/2, K)
    winner,  # with POOL (U, OH/2, OW/2, K) uint8, which of the four pixels is the largest; else None
    pixels,  # U * OH * OW
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    SIZE: tl.constexpr,  # k
    PADDING: tl.constexpr,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # output channels
    BLOCK_K: tl.constexpr,  # of the k * C inputs under one row of the filter
):
    OH: tl.constexpr = H + 2 * PADDING - SIZE + 1
    OW: tl.constexpr = W + 2 * PADDING - SIZE + 1
    ROW: tl.constexpr = SIZE * C
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Pixels past the end compute the last one again; only the store has to know.
    image, row, column = _pixel(tl.minimum(m, pixels - 1), POOL, OH, OW)
    # One 64-bit address a program, the rest are 32-bit distances from it: half the registers.
    first_image = tl.program_id(0) * BLOCK_M // (OH * OW)
    x += first_image.to(tl.int64) * (H * W * C)
    corner = (((image - first_image) * H + row - PADDING) * W + column - PADDING) * C

    first, last = 0, SIZE
    if PADDING > 0:
        # Rows of the filter that lie above or below the image for the whole tile.
        first = tl.maximum(PADDING - tl.max(row), 0)
        last = tl.minimum(H + PADDING - tl.min(row), SIZE)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACCUMULATOR)
    for dy in range(first, last):
        for start in range(0, ROW, BLOCK_K):
            j = start + tl.arange(0, BLOCK_K)
            x_at = x + (corner[:, None] + (dy * W * C + j)[None, :])
            w_at = weight + (n[None, :] * (SIZE * ROW) + (dy * ROW + j)[:, None])
            in_row = j < ROW
            # Neighbouring places of the filter read the same pixels again: through L1 (.ca), or the way
            # from L2 would bound the kernel.
            if PADDING > 0:
                inside = _inside(row, column, dy, start, j, H, W, C, PADDING, BLOCK_K) & in_row[None, :]
                x_tile = tl.load(x_at, mask=inside, other=0.0, cache_modifier=".ca")
            elif ROW % BLOCK_K:
                x_tile = tl.load(x_at, mask=in_row[None, :], other=0.0, cache_modifier=".ca")
            else:
                x_tile = tl.load(x_at, cache_modifier=".ca")
            if (ROW % BLOCK_K) or (K % BLOCK_N):
                w_tile = tl.load(w_at, mask=in_row[:, None] & (n < K)[None, :], other=0.0)
            else:
                w_tile = tl.load(w_at)
            x_tile, w_tile = x_tile.to(DOT_DTYPE), w_tile.to(DOT_DTYPE)
            acc = tl.dot(x_tile, w_tile, acc, input_precision=INPUT_PRECISION, out_dtype=ACCUMULATOR)

    in_k = n < K
    if bias is not None:
        acc += tl.load(bias + n, mask=in_k, other=0.0).to(ACCUMULATOR)[None, :]
    stored = (m < pixels)[:, None] & in_k[None, :]
    pixel = m.to(tl.int64)
    if residual is not None:
        if POOL:
            pixel = (image.to(tl.int64) * OH + row) * OW + column
        acc += tl.load(residual + pixel[:, None] * K + n[None, :], mask=stored, other=0.0).to(ACCUMULATOR)
    if RELU:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    y = acc.to(out.dtype.element_ty)
    if POOL:
        # As in PyTorch the winner is sought among the rounded values, of equals the first one wins, and NaN counts
        # as largest (comparisons would lose it), of several the last. So each NaN has a number below 0, the less the
        # later it comes, whose last two bits are its place.
        windows = tl.reshape(y.to(ACCUMULATOR), (BLOCK_M // 4, 4, BLOCK_N))
        place = tl.arange(0, 4)[None, :, None]
        rank = tl.where(windows != windows, float("inf"), windows)
        largest = tl.where(rank == tl.max(rank, axis=1)[:, None, :], place, 4)
        which = tl.min(tl.where(windows != windows, -4 - 3 * place, largest), axis=1) & 3
        best = tl.sum(tl.where(place == which[:, None, :], windows, 0.0), axis=1)
        window = tl.program_id(0).to(tl.int64) * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
        at = window[:, None] * K + n[None, :]
        stored = (window * 4 < pixels)[:, None] & in_k[None, :]
        tl.store(out + at, best.to(out.dtype.element_ty), mask=stored)
        tl.store(winner + at, which.to(tl.uint8), mask=stored)
    else:
        tl.store(out + pixel[:, None] * K + n[None, :], y, mask=stored)


@triton.jit
def _glyph_conv_epilogue_bwd_kernel(
    dout,  # as `out`
    out,  # (U, OH, OW, K), or with POOL (U, OH/2, OW/2, K): what the forward gave; read with RELU
    winner,  # with POOL (U, OH/2, OW/2, K) uint8; else None
    g,  # (U, OH, OW, K): gradient of the convolution's own output
    dbias,  # (programs, K), partial sums in the accumulator's dtype
    positions,  # pixels of `out`
    OH: tl.constexpr,
    OW: tl.constexpr,
    K: tl.constexpr,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    n = tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), dtype=ACCUMULATOR)
    for start in range(tl.program_id(0) * BLOCK_P, positions, tl.num_programs(0) * BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        there = (p < positions)[:, None] & (n < K)[None, :]
        at = p.to(tl.int64)[:, None] * K + n[None, :]
        gradient = tl.load(dout + at, mask=there, other=0.0)
        if RELU:
            # Pooling after a ReLU lets nothing through exactly where the largest of the four is 0.
            gradient = tl.where(tl.load(out + at, mask=there, other=0.0) <= 0, 0.0, gradient)
        total += tl.sum(gradient.to(ACCUMULATOR), axis=0)
        if POOL:
            won = tl.load(winner + at, mask=there, other=0)
            u, y, x = _pixel(p * 4, POOL, OH, OW)
            pixel = (u.to(tl.int64) * OH + y) * OW + x
            for s in tl.static_range(4):
                target = g + (pixel + (s // 2) * OW + s % 2)[:, None] * K + n[None, :]
                tl.store(target, tl.where(won == s, gradient, 0.0), mask=there)
        else:
            tl.store(g + at, gradient, mask=there)
    tl.store(dbias + tl.program_id(0) * K + n, total, mask=n < K)


@triton.jit
def _glyph_conv_wgrad_kernel(
    g,  # (U, OH, OW, K)
    x,  # (U, H, W, C)
    dweight,  # (splits, K, k, k * C), partial sums in the accumulator's dtype
    pixels,  # U * OH * OW
    pixels_per_split,  # a multiple of BLOCK_P
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    PADDING: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,  # pixels
    BLOCK_M: tl.constexpr,  # output channels
    BLOCK_N: tl.constexpr,  # of the k * C inputs under one row of the filter
):
    OH: tl.constexpr = H + 2 * PADDING - SIZE + 1
    OW: tl.constexpr = W + 2 * PADDING - SIZE + 1
    ROW: tl.constexpr = SIZE * C
    dy = tl.program_id(0) % SIZE
    split = tl.program_id(0) // SIZE
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n = tl.arange(0, BLOCK_M)
    start = split * pixels_per_split
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACCUMULATOR)
    for first in range(start, tl.minimum(start + pixels_per_split, pixels), BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        there = p < pixels
        g_at = g + tl.cast(first, tl.int64) * K + (tl.arange(0, BLOCK_P)[None, :] * K + n[:, None])
        g_tile = tl.load(g_at, mask=there[None, :] & (n < K)[:, None], other=0.0)
        u, row, column = _pixel(p, False, OH, OW)
        first_image = first // (OH * OW)
        corner = (((u - first_image) * H + row + dy - PADDING) * W + column - PADDING) * C
        inside = there[:, None] & (j < ROW)[None, :]
        if PADDING > 0:
            inside &= _inside(row, column, dy, tl.program_id(1) * BLOCK_N, j, H, W, C, PADDING, BLOCK_N)
        x_image = x + tl.cast(first_image, tl.int64) * (H * W * C)
        x_tile = tl.load(x_image + (corner[:, None] + j[None, :]), mask=inside, other=0.0)
        g_tile, x_tile = g_tile.to(DOT_DTYPE), x_tile.to(DOT_DTYPE)
        acc = tl.dot(g_tile, x_tile, acc, input_precision=INPUT_PRECISION, out_dtype=ACCUMULATOR)
    at = (split.to(tl.int64) * K + n)[:, None] * (SIZE * ROW) + dy * ROW + j[None, :]
    tl.store(dweight + at, acc, mask=(n < K)[:, None] & (j < ROW)[None, :])
