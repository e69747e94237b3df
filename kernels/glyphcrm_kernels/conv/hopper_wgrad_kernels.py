"""Glyph convolution: the weight gradient on Hopper's tensor cores, in Gluon; hopper.py starts it.

A program keeps one row of the filter, 64 x 576 sums, in registers, and walks over steps: 16 images, one row of the
gradient, some of its columns. In the order (column, image) in shared memory, the 16 images of a column of the gradient
are the K of a wgmma, and the 8 input columns from there on are, unchanged, its operand for 8 taps (N = 8 x 64). The
ninth tap is a product of its own. TMA gives zeros for images past the last one.

Barriers are as in hopper_kernels.py, one for each stage.
"""

from __future__ import annotations

from glyphcrm_kernels._shared.gluon import barrier, copy_in, gl, gluon, hopper, reinterpret, stage_of, window


@gluon.jit
def _load_step(
    x_desc,
    g_desc,
    xbuf,
    gbuf,
    bars,
    start,
    number,  # of the step, from `start` on
    there,  # whether there is such a step
    dy,
    PADDING: gl.constexpr,
    OH: gl.constexpr,
    CHUNKS: gl.constexpr,
    COLUMNS: gl.constexpr,
    STAGES: gl.constexpr,
    X_BOXES: gl.constexpr,
    G_BOXES: gl.constexpr,
    BOX: gl.constexpr,
    BOX_BYTES: gl.constexpr,
):
    """Start the copies of a step."""
    step = start + number
    column = step % CHUNKS * COLUMNS
    row = step // CHUNKS % OH
    image = step // (CHUNKS * OH) * 16
    stage = number % STAGES
    bar = bars.index(stage)
    hopper.mbarrier.expect(bar, (X_BOXES + G_BOXES) * BOX_BYTES, pred=there)
    for j in gl.static_range(X_BOXES):
        at = [row + dy - PADDING, column + BOX * j - PADDING, image, 0]
        copy_in(x_desc, at, bar, xbuf.index(stage * X_BOXES + j), pred=there)
    for j in gl.static_range(G_BOXES):
        copy_in(g_desc, [row, column + BOX * j, image, 0], bar, gbuf.index(stage * G_BOXES + j), pred=there)


@gluon.jit
def _put(
    acc,
    dweight,
    split,
    dy,
    FIRST: gl.constexpr,
    WIDTH: gl.constexpr,
    K: gl.constexpr,
    SIZE: gl.constexpr,
    ROW: gl.constexpr,
    WARPS: gl.constexpr,
):
    """Store the WIDTH sums of each output channel from the FIRST-th of a filter row on."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [WARPS, 1], [1, 0])  # 16 bytes a thread
    y = gl.convert_layout(acc, layout)
    n = gl.arange(0, K, gl.SliceLayout(1, layout))
    j = FIRST + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    gl.store(dweight + (((split * K + n) * SIZE + dy) * ROW)[:, None] + j[None, :], y)


@gluon.jit(do_not_specialize=["steps"])
def _glyph_conv_hopper_wgrad_kernel(
    x_desc,  # (row, column, image, channel)
    g_desc,
    dweight,  # (splits, K, SIZE, SIZE * C) float32, partial sums
    steps,  # of a program; those past the last image add zeros
    H: gl.constexpr,
    W: gl.constexpr,
    C: gl.constexpr,
    K: gl.constexpr,
    SIZE: gl.constexpr,  # 9
    PADDING: gl.constexpr,
    COLUMNS: gl.constexpr,  # of a step
    BOX: gl.constexpr,  # columns of one copy
    STAGES: gl.constexpr,
    AHEAD: gl.constexpr,  # products that may be unfinished when the next step begins
    WARPS: gl.constexpr,
):
    OH: gl.constexpr = H + 2 * PADDING - SIZE + 1
    OW: gl.constexpr = W + 2 * PADDING - SIZE + 1
    CHUNKS: gl.constexpr = OW // COLUMNS
    X_BOXES: gl.constexpr = (COLUMNS + SIZE - 1) // BOX
    G_BOXES: gl.constexpr = COLUMNS // BOX
    BOX_BYTES: gl.constexpr = BOX * 16 * C * 2
    GROUPS: gl.constexpr = WARPS // 4
    ROW: gl.constexpr = SIZE * C
    T: gl.constexpr = SIZE - 1  # taps of one product
    dy = gl.program_id(0) % SIZE
    split = gl.program_id(0) // SIZE
    start = split * steps

    dtype: gl.constexpr = x_desc.dtype
    matrix: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    xbuf = gl.allocate_shared_memory(dtype, [STAGES * X_BOXES] + x_desc.block_type.shape, x_desc.layout)  # noqa: RUF005
    gbuf = gl.allocate_shared_memory(dtype, [STAGES * G_BOXES] + g_desc.block_type.shape, g_desc.layout)  # noqa: RUF005
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        hopper.mbarrier.init(bars.index(i), count=1)
    hopper.fence_async_shared()
    barrier()
    x_columns = reinterpret(xbuf, dtype, [STAGES * X_BOXES * BOX, 16, C], matrix)
    g_columns = reinterpret(gbuf, dtype, [STAGES * G_BOXES * BOX, 16, K], matrix)
    g_boxes = reinterpret(gbuf, dtype, [STAGES * G_BOXES, BOX * 16, K], matrix)

    for i in gl.static_range(STAGES):
        _load_step(
            x_desc, g_desc, xbuf, gbuf, bars, start, i, i < steps, dy,
            PADDING, OH, CHUNKS, COLUMNS, STAGES, X_BOXES, G_BOXES, BOX, BOX_BYTES,
        )  # fmt: skip

    N: gl.constexpr = T * C // GROUPS
    mma0: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, GROUPS], [16, 256 if N > 256 else N, 16])
    mma1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, GROUPS], [16, C // GROUPS, 16])
    acc0 = gl.zeros((K, T * C), dtype=gl.float32, layout=mma0)
    acc1 = gl.zeros((K, C), dtype=gl.float32, layout=mma1)
    for step in range(steps):
        stage = step % STAGES
        hopper.mbarrier.wait(bars.index(stage), (step // STAGES) & 1)
        base = stage_of(x_columns, stage, STAGES, X_BOXES * BOX)
        for j in gl.static_range(G_BOXES):
            # The last tap, BOX columns of 16 images at a time.
            g_box = g_boxes.index(stage * G_BOXES + j)
            x_box = window(x_columns, base, j * BOX + T, BOX, [BOX * 16, C], matrix)
            acc1 = hopper.warpgroup_mma(g_box.permute([1, 0]), x_box, acc1, is_async=True)
            for c in gl.static_range(BOX):
                g_column = g_columns.index((stage * G_BOXES + j) * BOX + c)
                x_taps = window(x_columns, base, j * BOX + c, T, [16, T * C], matrix)
                acc0 = hopper.warpgroup_mma(g_column.permute([1, 0]), x_taps, acc0, is_async=True)
            if j == 0:
                acc0, acc1 = hopper.warpgroup_mma_wait(num_outstanding=BOX + 1, deps=(acc0, acc1))
                barrier()  # all warps are done with the step before
                later = step + STAGES - 1
                _load_step(
                    x_desc, g_desc, xbuf, gbuf, bars, start, later, (step > 0) & (later < steps), dy,
                    PADDING, OH, CHUNKS, COLUMNS, STAGES, X_BOXES, G_BOXES, BOX, BOX_BYTES,
                )  # fmt: skip
        acc0, acc1 = hopper.warpgroup_mma_wait(num_outstanding=AHEAD, deps=(acc0, acc1))
    acc0, acc1 = hopper.warpgroup_mma_wait(num_outstanding=0, deps=(acc0, acc1))
    barrier()  # a change of layout may use the memory that products read
    _put(acc0, dweight, split, dy, 0, T * C, K, SIZE, ROW, WARPS)
    _put(acc1, dweight, split, dy, T * C, C, K, SIZE, ROW, WARPS)
