"""Glyph stem: what the Triton kernels do on a GPU; triton.py starts them."""

from __future__ import annotations

from glyphcrm_kernels._shared.optional_triton import tl, triton


@triton.jit
def _windows(
    rows,  # (images,) int32 or int64
    bitmaps,  # (atlas_rows, 288) uint8
    image,  # which of `rows`
    pooled,  # (Q,) int32, pooled pixels
    atlas_rows,
    IMAGE_SIZE: tl.constexpr,
):
    """Return for each pooled pixel its 16 bits of ink, int32: row r, column s of the 4x4 window is bit 15 - 4r - s.

    Of a picture that is not in the atlas nothing is read.
    """
    row = tl.load(rows + image).to(tl.int64)
    glyph = bitmaps + row * (IMAGE_SIZE * IMAGE_SIZE // 8)
    top = pooled // (IMAGE_SIZE // 2) * 2 - 1
    top = tl.where((row >= 0) & (row < atlas_rows), top, -4)  # no picture: above the image
    left = pooled % (IMAGE_SIZE // 2) * 2 - 1
    first = left >> 3  # the window lies in this byte and the next
    window = tl.zeros_like(pooled)
    for r in tl.static_range(4):
        inside = (top + r >= 0) & (top + r < IMAGE_SIZE)
        line = glyph + (top + r) * (IMAGE_SIZE // 8) + first
        high = tl.load(line, mask=inside & (first >= 0), other=0).to(tl.int32)
        low = tl.load(line + 1, mask=inside & (first + 1 < IMAGE_SIZE // 8), other=0).to(tl.int32)
        window = (window << 4) | ((((high << 8) | low) >> (12 - (left & 7))) & 15)
    return window


@triton.jit
def _pixels(pooled, IMAGE_SIZE: tl.constexpr):
    """Return ``(4, Q)`` int32: the four pixels under each pooled pixel, in row-major order."""
    k = tl.arange(0, 4)[:, None]
    y = pooled[None, :] // (IMAGE_SIZE // 2) * 2 + k // 2
    x = pooled[None, :] % (IMAGE_SIZE // 2) * 2 + k % 2
    return y * IMAGE_SIZE + x


@triton.jit(do_not_specialize=["atlas_rows"])
def _glyph_stem_fwd_kernel(
    rows,  # (images,) int32 or int64
    bitmaps,  # (atlas_rows, 288) uint8
    ink_weight,  # (9, C) float32
    constant,  # (48, 48, C) float32
    activation,  # out: (images, 48, 48, C)
    pooled,  # out: (images, 24, 24, C)
    images,
    atlas_rows,
    IMAGE_SIZE: tl.constexpr,
    C: tl.constexpr,
    Q: tl.constexpr,  # windows a program
    IMAGES: tl.constexpr,  # images a program
):
    q = tl.program_id(0) * Q + tl.arange(0, Q)
    channel = tl.arange(0, C)
    offsets = _pixels(q, IMAGE_SIZE)[:, :, None] * C + channel[None, None, :]
    pooled_offsets = q[:, None] * C + channel[None, :]
    # Which of the window's 16 bits the tap (0, 0) of each of the four pixels is.
    k = tl.arange(0, 4)[:, None]
    origin = 15 - k // 2 * 4 - k % 2

    start = tl.load(constant + offsets)
    first = tl.program_id(1).to(tl.int64) * IMAGES
    window = _windows(rows, bitmaps, first, q, atlas_rows, IMAGE_SIZE)
    for image in range(first, tl.minimum(first + IMAGES, images)):
        bits = window[None, :]
        # The next image's bits are on their way while this one is computed.
        window = _windows(rows, bitmaps, tl.minimum(image + 1, images - 1), q, atlas_rows, IMAGE_SIZE)
        row = tl.load(rows + image).to(tl.int64)
        y = tl.where((row >= 0) & (row < atlas_rows), start, float("nan"))  # of no picture in the atlas comes NaN
        for tap in tl.static_range(9):
            w = tl.load(ink_weight + tap * C + channel)
            bit = (bits >> (origin - tap // 3 * 4 - tap % 3)) & 1
            y += bit.to(w.dtype)[:, :, None] * w[None, None, :]
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(activation + image * (IMAGE_SIZE * IMAGE_SIZE * C) + offsets, y)
        # Rounding keeps the order, so this is also the maximum of what was stored.
        tl.store(pooled + image * (IMAGE_SIZE * IMAGE_SIZE // 4 * C) + pooled_offsets, tl.max(y, 0))


@triton.jit(do_not_specialize=["atlas_rows"])
def _glyph_stem_bwd_kernel(
    rows,  # (images,) int32 or int64
    bitmaps,  # (atlas_rows, 288) uint8
    activation,  # (images, 48, 48, C)
    dactivation,  # (images, 48, 48, C)
    dpooled,  # (images, 24, 24, C)
    dink_weight,  # out: (splits, tiles, 9, C) float32, partial sums
    dconstant,  # out: (splits, 48, 48, C) float32, partial sums
    images,
    images_per_split,
    atlas_rows,
    IMAGE_SIZE: tl.constexpr,
    C: tl.constexpr,
    Q: tl.constexpr,  # windows a program
    DOT_DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    q = tile * Q + tl.arange(0, Q)
    channel = tl.arange(0, C)
    offsets = _pixels(q, IMAGE_SIZE)[:, :, None] * C + channel[None, None, :]
    pooled_offsets = q[:, None] * C + channel[None, :]
    k = tl.arange(0, 4)[:, None, None]
    # For the dot, the taps are padded to 16 and the pixels stand in one dimension, (4, Q) row by row.
    tap = tl.arange(0, 16)[:, None]
    under = tl.arange(0, 4 * Q) // Q
    shift = 15 - tap // 3 * 4 - tap % 3 - (under // 2 * 4 + under % 2)[None, :]
    flat_q = tile * Q + tl.arange(0, 4 * Q) % Q

    dtype = dconstant.dtype.element_ty
    dw = tl.zeros((16, C), dtype)
    dc = tl.zeros((4, Q, C), dtype)
    first = split * images_per_split
    for image in range(first, tl.minimum(first + images_per_split, images)):
        position = image * (IMAGE_SIZE * IMAGE_SIZE * C)
        a = tl.load(activation + position + offsets).to(dtype)
        g = tl.load(dactivation + position + offsets).to(dtype)
        gp = tl.load(dpooled + image * (IMAGE_SIZE * IMAGE_SIZE // 4 * C) + pooled_offsets).to(dtype)
        # As in PyTorch, the first maximum of a window takes the gradient.
        first_best = tl.min(tl.where(a == tl.max(a, 0)[None, :, :], k, 4), 0)
        g += tl.where(k == first_best[None, :, :], gp[None, :, :], 0.0)
        g = tl.where(a <= 0, 0.0, g)
        dc += g
        window = _windows(rows, bitmaps, image, flat_q, atlas_rows, IMAGE_SIZE)
        bits = tl.where(tap < 9, (window[None, :] >> tl.maximum(shift, 0)) & 1, 0)
        flat_g = tl.reshape(g, (4 * Q, C)).to(DOT_DTYPE)
        dw = tl.dot(bits.to(DOT_DTYPE), flat_g, dw, input_precision=INPUT_PRECISION, out_dtype=dtype)

    tl.store(dconstant + split * (IMAGE_SIZE * IMAGE_SIZE * C) + offsets, dc)
    partial = split * tl.num_programs(0) + tile
    tl.store(dink_weight + (partial * 9 + tap) * C + channel[None, :], dw, mask=tap < 9)
