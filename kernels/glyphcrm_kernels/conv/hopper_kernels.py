"""Glyph convolution: forward and data gradient on Hopper's tensor cores, in Gluon; hopper.py starts them.

Operands are exchanged. Weights are the M of wgmma (64 output channels), pixels its N (up to 256): with pixels as M an
instruction of 32 cycles reads 4 KiB of shared memory, all that it gives; with 256 pixels as N, 10 KiB in 128 cycles.

Pixels lie in shared memory in the order (column, image). For each row of the filter TMA fetches one input row of some
images, with zeros outside of the image; the descriptor's order of dimensions is the transposition. The pixels of a
column are whole swizzle atoms of 8, so that moving the filter by a column is but another address: nine products read
what was written once. A program computes one output row of its images, all columns.

With POOL, which needs whole 2x2 windows, rows and columns change roles: a program computes 8 columns of its images, all
rows; the order is (row, image, column). "Places" are columns, with POOL rows; "lines" are rows, with POOL columns.

Barriers. Each stage of x and each slot of weights has an mbarrier: TMA counts bytes there, and products wait for the
phase, which follows from the number of the turn (a line of the filter, some channels) and of the tap (a place in it).
After each tap a warp waits until its products of the tap before are done, and `barrier` until those of all warps are;
then what that tap read is filled again. Copies and products are of one proxy, so no other fence is needed.
"""

from __future__ import annotations

from glyphcrm_kernels._shared.gluon import barrier, copy_in, gl, gluon, hopper, reinterpret, stage_of, window


@gluon.jit
def _load_x(
    x_desc,
    xbuf,
    xbar,
    number,  # of the turn
    there,  # whether there is such a turn
    image,
    line,
    first,
    PADDING: gl.constexpr,
    POOL: gl.constexpr,
    CHUNKS: gl.constexpr,
    CHUNK: gl.constexpr,
    STAGES: gl.constexpr,
    BOXES: gl.constexpr,
    BOX: gl.constexpr,
    BOX_BYTES: gl.constexpr,
):
    """Start the copies of a turn."""
    at_line = line + first + number // CHUNKS - PADDING
    channel = number % CHUNKS * CHUNK
    stage = number % STAGES
    bar = xbar.index(stage)
    hopper.mbarrier.expect(bar, BOXES * BOX_BYTES, pred=there)
    for j in gl.static_range(BOXES):
        place = BOX * j - PADDING
        at = [place, image, at_line, channel] if POOL else [at_line, place, image, channel]
        copy_in(x_desc, at, bar, xbuf.index(stage * BOXES + j), pred=there)


@gluon.jit
def _slot(turn, tap: gl.constexpr, SIZE: gl.constexpr, SLOTS: gl.constexpr):
    """Return where the weights of a tap lie, and its barrier's phase; taps from SIZE on are those of later turns."""
    if SIZE % SLOTS == 0:
        slot = tap % SLOTS
        phase = (turn * (SIZE // SLOTS) + tap // SLOTS) & 1
    else:
        slot = (turn * SIZE + tap) % SLOTS
        phase = ((turn * SIZE + tap) // SLOTS) & 1
    return slot, phase


@gluon.jit
def _load_weights(
    w_desc,
    wbuf,
    wbar,
    turn,
    tap: gl.constexpr,  # from SIZE on, of later turns
    there,  # whether there is such a tap
    first,
    C: gl.constexpr,
    SIZE: gl.constexpr,
    POOL: gl.constexpr,
    CHUNKS: gl.constexpr,
    CHUNK: gl.constexpr,
    SLOTS: gl.constexpr,
    SLOT_BYTES: gl.constexpr,
):
    """Start the copy of the weights of a tap."""
    slot, _ = _slot(turn, tap, SIZE, SLOTS)
    later = turn + tap // SIZE
    line = first + later // CHUNKS
    place = (tap % SIZE * SIZE + line) if POOL else (line * SIZE + tap % SIZE)
    bar = wbar.index(slot)
    hopper.mbarrier.expect(bar, SLOT_BYTES, pred=there)
    copy_in(w_desc, [0, place * C + later % CHUNKS * CHUNK], bar, wbuf.index(slot), pred=there)


@gluon.jit
def _finish(
    acc,  # (K, P)
    bias,
    residual,
    out,
    winner,
    image,
    line,
    images,
    P: gl.constexpr,  # pixels
    FIRST: gl.constexpr,  # pixel of the program
    OH: gl.constexpr,
    OW: gl.constexpr,
    K: gl.constexpr,
    MINOR: gl.constexpr,
    RELU: gl.constexpr,
    POOL: gl.constexpr,
    COLUMNS: gl.constexpr,
    WARPS: gl.constexpr,
):
    """Add bias and residual, clamp, pool and store."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])  # 16 bytes a thread
    y = gl.convert_layout(gl.permute(acc, [1, 0]), layout)
    p = FIRST + gl.arange(0, P, gl.SliceLayout(1, layout))
    n = gl.arange(0, K, gl.SliceLayout(0, layout))
    if POOL:
        u = image + p % MINOR // COLUMNS
        row = p // MINOR
        column = line + p % COLUMNS
    else:
        u = image + p % MINOR
        row = line + p * 0
        column = p // MINOR
    at = ((u.to(gl.int64) * OH + row) * OW + column)[:, None] * K + n[None, :]
    there = (u < images)[:, None] & (n < K)[None, :]
    if bias is not None:
        y += gl.load(bias + n).to(gl.float32)[None, :]
    if residual is not None:
        y += gl.load(residual + at, mask=there, other=0.0).to(gl.float32)
    if RELU:
        y = gl.where(y < 0.0, 0.0, y)  # NaN stays
    if POOL:
        # As in _glyph_conv_fwd_kernel: among rounded values, of equals the first one, NaN counts as largest. But +inf
        # counts as its equal, and wins if it comes first: to tell them apart takes up to 11 registers.
        Q: gl.constexpr = P // 4
        IMAGES: gl.constexpr = MINOR // COLUMNS
        HALF: gl.constexpr = COLUMNS // 2
        windows: gl.constexpr = gl.BlockedLayout([1, 4, 8], [256 // K, 1, K // 8], [WARPS, 1, 1], [2, 1, 0])
        flat: gl.constexpr = gl.SliceLayout(1, windows)
        z = gl.permute(gl.reshape(y, [P // MINOR // 2, 2, IMAGES, HALF, 2, K]), [0, 2, 3, 1, 4, 5])
        z = gl.convert_layout(gl.reshape(z, [Q, 4, K]), windows)
        z = z.to(out.dtype.element_ty).to(gl.float32)
        place = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, windows)))[None, :, None]
        rank = gl.where(z != z, float("inf"), z)
        which = gl.min(gl.where(rank == gl.max(rank, axis=1)[:, None, :], place, 4), axis=1)
        best = gl.sum(gl.where(place == which[:, None, :], z, 0.0), axis=1)
        q = gl.arange(0, Q, gl.SliceLayout(1, flat))
        k = gl.arange(0, K, gl.SliceLayout(0, flat))
        of_image = image + q // HALF % IMAGES
        window_row = FIRST // MINOR // 2 + q // (HALF * IMAGES)
        pooled = (of_image.to(gl.int64) * (OH // 2) + window_row) * (OW // 2) + line // 2 + q % HALF
        at_window = pooled[:, None] * K + k[None, :]
        stored = (of_image < images)[:, None] & (k < K)[None, :]
        gl.store(out + at_window, best.to(out.dtype.element_ty), mask=stored)
        gl.store(winner + at_window, which.to(gl.uint8), mask=stored)
    else:
        gl.store(out + at, y.to(out.dtype.element_ty), mask=there)


@gluon.jit(do_not_specialize=["images"])
def _glyph_conv_hopper_fwd_kernel(
    x_desc,  # (row, column, image, channel), with POOL (row, image, column, channel)
    w_desc,  # (K, SIZE * SIZE * C)
    bias,  # (K,) or None
    residual,  # (U, OH, OW, K) or None
    out,  # (U, OH, OW, K), or with POOL (U, OH/2, OW/2, K)
    winner,  # with POOL (U, OH/2, OW/2, K) uint8, which of the four pixels is the largest; else None
    images,  # U
    H: gl.constexpr,
    W: gl.constexpr,
    C: gl.constexpr,
    K: gl.constexpr,
    SIZE: gl.constexpr,
    PADDING: gl.constexpr,
    RELU: gl.constexpr,
    POOL: gl.constexpr,
    COLUMNS: gl.constexpr,  # of a program: with POOL 8, else 1
    MINOR: gl.constexpr,  # pixels of a place: images, times COLUMNS
    P0: gl.constexpr,  # places: two powers of two, the second may be 0
    P1: gl.constexpr,
    BOX: gl.constexpr,  # places of one copy
    CHUNK: gl.constexpr,  # channels of a turn
    STAGES: gl.constexpr,
    SLOTS: gl.constexpr,
    WARPS: gl.constexpr,
):
    OH: gl.constexpr = H + 2 * PADDING - SIZE + 1
    OW: gl.constexpr = W + 2 * PADDING - SIZE + 1
    CHUNKS: gl.constexpr = C // CHUNK
    BOXES: gl.constexpr = (P0 + P1 + SIZE - 1) // BOX
    BOX_BYTES: gl.constexpr = BOX * MINOR * CHUNK * 2
    SLOT_BYTES: gl.constexpr = K * CHUNK * 2
    ATOMS: gl.constexpr = MINOR // 8  # of a place
    STAGE: gl.constexpr = BOXES * BOX * ATOMS
    N0: gl.constexpr = P0 * MINOR
    N1: gl.constexpr = P1 * MINOR
    GROUPS: gl.constexpr = WARPS // 4

    # Neighbouring programs read the same input, so that it stays in L2.
    if POOL:
        line = gl.program_id(0) % (OW // COLUMNS) * COLUMNS
        image = gl.program_id(0) // (OW // COLUMNS) * (MINOR // COLUMNS)
        first = 0
        last = SIZE
    else:
        line = gl.program_id(0) % OH
        image = gl.program_id(0) // OH * MINOR
        # Rows of the filter that lie above or below the image are left out.
        first = gl.maximum(PADDING - line, 0)
        last = gl.minimum(H + PADDING - line, SIZE)
    turns = (last - first) * CHUNKS
    taps = turns * SIZE

    dtype: gl.constexpr = x_desc.dtype
    matrix: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=CHUNK * 2, element_bitwidth=16, rank=2)
    xbuf = gl.allocate_shared_memory(dtype, [STAGES * BOXES] + x_desc.block_type.shape, x_desc.layout)  # noqa: RUF005
    wbuf = gl.allocate_shared_memory(dtype, [SLOTS, K, CHUNK], w_desc.layout)
    xbar = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    wbar = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], hopper.mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        hopper.mbarrier.init(xbar.index(i), count=1)
    for i in gl.static_range(SLOTS):
        hopper.mbarrier.init(wbar.index(i), count=1)
    hopper.fence_async_shared()
    barrier()
    atoms = reinterpret(xbuf, dtype, [STAGES * STAGE, 8, CHUNK], matrix)

    for i in gl.static_range(STAGES):
        _load_x(
            x_desc, xbuf, xbar, i, i < turns, image, line, first,
            PADDING, POOL, CHUNKS, CHUNK, STAGES, BOXES, BOX, BOX_BYTES,
        )  # fmt: skip
    for i in gl.static_range(SLOTS):
        _load_weights(
            w_desc, wbuf, wbar, 0, i, i < taps, first, C, SIZE, POOL, CHUNKS, CHUNK, SLOTS, SLOT_BYTES
        )  # fmt: skip

    mma0: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, GROUPS], [16, N0 // GROUPS, 16])
    acc0 = gl.zeros((K, N0), dtype=gl.float32, layout=mma0)
    if P1 > 0:
        mma1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, GROUPS], [16, N1 // GROUPS, 16])
        acc1 = gl.zeros((K, N1), dtype=gl.float32, layout=mma1)

    for turn in range(turns):
        hopper.mbarrier.wait(xbar.index(turn % STAGES), (turn // STAGES) & 1)
        base = stage_of(atoms, turn % STAGES, STAGES, STAGE)
        for s in gl.static_range(SIZE):
            tap = turn * SIZE + s
            slot, phase = _slot(turn, s, SIZE, SLOTS)
            hopper.mbarrier.wait(wbar.index(slot), phase)
            weights = wbuf.index(slot)
            x0 = window(atoms, base, s * ATOMS, N0 // 8, [N0, CHUNK], matrix)
            acc0 = hopper.warpgroup_mma(weights, x0.permute([1, 0]), acc0, is_async=True)
            if P1 > 0:
                x1 = window(atoms, base, (s + P0) * ATOMS, N1 // 8, [N1, CHUNK], matrix)
                acc1 = hopper.warpgroup_mma(weights, x1.permute([1, 0]), acc1, is_async=True)
                acc0, acc1 = hopper.warpgroup_mma_wait(num_outstanding=2, deps=(acc0, acc1))
            else:
                acc0 = hopper.warpgroup_mma_wait(num_outstanding=1, deps=(acc0,))
            barrier()  # all warps are done with the tap before
            _load_weights(
                w_desc, wbuf, wbar, turn, s + SLOTS - 1, (tap > 0) & (tap + SLOTS - 1 < taps), first,
                C, SIZE, POOL, CHUNKS, CHUNK, SLOTS, SLOT_BYTES,
            )  # fmt: skip
            if s == 0:
                later = turn + STAGES - 1
                _load_x(
                    x_desc, xbuf, xbar, later, (turn > 0) & (later < turns), image, line, first,
                    PADDING, POOL, CHUNKS, CHUNK, STAGES, BOXES, BOX, BOX_BYTES,
                )  # fmt: skip

    if P1 > 0:
        acc0, acc1 = hopper.warpgroup_mma_wait(num_outstanding=0, deps=(acc0, acc1))
    else:
        acc0 = hopper.warpgroup_mma_wait(num_outstanding=0, deps=(acc0,))
    barrier()  # a change of layout may use the memory that products read
    _finish(
        acc0, bias, residual, out, winner, image, line, images,
        N0, 0, OH, OW, K, MINOR, RELU, POOL, COLUMNS, WARPS,
    )  # fmt: skip
    if P1 > 0:
        _finish(
            acc1, bias, residual, out, winner, image, line, images,
            N1, N0, OH, OW, K, MINOR, RELU, POOL, COLUMNS, WARPS,
        )  # fmt: skip
