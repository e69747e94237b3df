"""Glyph convolution: k x k convolution with the epilogue of a HanGlyph residual block.

Fused: convolution, bias, residual, ReLU, 2x2 max pooling; the values between them never reach memory.

The convolution is an implicit matrix product. In NHWC order the k pixels under one row of the filter
are contiguous, ``k * C`` numbers, so

    y[pixel, n] = sum over dy, j of  x[pixel's row + dy, its column .. + k, :][j] * weight[n, dy, j]

is, for every row dy of the filter, a product of (pixels, k * C) with (k * C, K). With pooling, the four
pixels of a window are neighbours in a tile, so the maximum stays inside it.

Kept for the backward: x, the weight, and of the output what the epilogue's derivative needs: y itself
for the ReLU (the next layer keeps it anyway) and, with pooling, one byte a window that says which pixel
won. The backward first undoes the epilogue in one streaming pass (reads dy, y; writes g = the
convolution's own gradient, which is also the residual's; sums dbias), because both gradients read g many
times. The data gradient is the forward kernel on g with the filter turned round; the weight gradient is
a product over all pixels, split over programs whose partial sums are added in a fixed order.

Floor at 1,700 characters, base size, bf16: the three 9x9 convolutions are 3.6 TFLOP forward and 7.2
backward, against 1.8 GB and 5.4 GB of activations: bound by arithmetic on every GPU named here. Above the
floor, the data gradient multiplies the zeros left and right of the image as well, 1.2 to 1.33 times the
products; those above and below it are left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels import launch
from glyphcrm_kernels._triton import tl, triton
from glyphcrm_kernels.backend import autocast_dtype, use_triton
from glyphcrm_kernels.fourier_conv import fourier_conv, fourier_pays
from glyphcrm_kernels.launch import Launch, Target, target_of

CHANNELS = (4, 8, 16, 32, 64, 128)


def glyph_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> Tensor:
    """The definition, in PyTorch; arguments as in `glyph_conv`."""
    y = F.conv2d(x, weight, bias, padding=padding)
    if residual is not None:
        y = y + residual
    if relu:
        y = F.relu(y)
    return F.max_pool2d(y, 2) if pool else y


# Kernels ---------------------------------------------------------------------------------------------


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
        # as largest (comparisons would lose it).
        windows = tl.reshape(y.to(ACCUMULATOR), (BLOCK_M // 4, 4, BLOCK_N))
        place = tl.arange(0, 4)[None, :, None]
        rank = tl.where(windows != windows, float("inf"), windows)
        which = tl.min(tl.where(rank == tl.max(rank, axis=1)[:, None, :], place, 4), axis=1)
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


# Tiles and launches ----------------------------------------------------------------------------------


class Tile(NamedTuple):
    """The work of one program at 16 bits: output pixels by all output channels, in steps of `reduction`.

    With 32 bits, `pixels` and `reduction` are halved.
    """

    pixels: int
    reduction: int
    warps: int
    stages: int


# By family of architectures and output channels. Chosen by reading the compiled code
# (`python -m bench.static_report`); not timed on a GPU.
FORWARD_TILES = {
    "ampere": {16: Tile(128, 64, 4, 3), 32: Tile(128, 64, 4, 3), 64: Tile(128, 64, 4, 3), 128: Tile(64, 64, 4, 3)},
    "hopper": {16: Tile(128, 64, 4, 3), 32: Tile(128, 64, 4, 3), 64: Tile(128, 64, 4, 3), 128: Tile(64, 64, 4, 3)},
    "blackwell": {16: Tile(128, 64, 4, 3), 32: Tile(128, 32, 4, 4), 64: Tile(128, 64, 4, 3), 128: Tile(64, 64, 4, 3)},
    "cdna": {16: Tile(128, 64, 4, 2), 32: Tile(128, 64, 4, 2), 64: Tile(128, 64, 4, 2), 128: Tile(64, 64, 4, 2)},
}
# With padding, as in every data gradient: each pixel's place takes registers.
PADDED_TILES = {
    "ampere": {16: Tile(128, 32, 4, 4), 32: Tile(128, 32, 4, 4), 64: Tile(128, 32, 4, 4), 128: Tile(64, 32, 4, 4)},
    "hopper": {16: Tile(128, 64, 4, 3), 32: Tile(128, 64, 4, 3), 64: Tile(128, 64, 4, 3), 128: Tile(128, 64, 4, 3)},
    "blackwell": {16: Tile(128, 32, 4, 4), 32: Tile(128, 32, 4, 4), 64: Tile(64, 64, 4, 2), 128: Tile(128, 64, 4, 3)},
    "cdna": {16: Tile(128, 64, 4, 2), 32: Tile(128, 64, 4, 2), 64: Tile(128, 64, 4, 2), 128: Tile(64, 64, 4, 2)},
}
# Weight gradient: `pixels` is the step here, and `reduction` the width of the tile of the filter.
WEIGHT_TILES = {
    "ampere": {16: Tile(64, 64, 4, 3), 32: Tile(64, 64, 4, 3), 64: Tile(64, 128, 4, 3), 128: Tile(64, 64, 4, 3)},
    "hopper": {16: Tile(64, 64, 4, 3), 32: Tile(64, 64, 4, 3), 64: Tile(64, 128, 4, 3), 128: Tile(64, 64, 4, 3)},
    "blackwell": {16: Tile(64, 64, 4, 3), 32: Tile(64, 128, 4, 3), 64: Tile(64, 128, 4, 3), 128: Tile(64, 32, 4, 3)},
    "cdna": {16: Tile(64, 64, 4, 2), 32: Tile(64, 64, 4, 2), 64: Tile(64, 128, 4, 2), 128: Tile(64, 64, 4, 2)},
}
WEIGHT_PROGRAMS_PER_MULTIPROCESSOR = 4


def _family(target: Target) -> str:
    if target.backend == "cuda":
        # The others, sm_86, sm_89 and sm_120 too, have Ampere's tensor cores and less shared memory.
        return {90: "hopper", 100: "blackwell", 103: "blackwell"}.get(int(target.arch), "ampere")
    return "cdna" if target.backend == "hip" else "interpreter"


def _tile(table: dict[str, dict[int, Tile]], target: Target, channels: int, dtype: torch.dtype, pixels: int) -> Tile:
    family = _family(target)
    if family == "interpreter":  # few programs and little padding, as each costs a millisecond
        return Tile(min(max(triton.next_power_of_2(pixels), 16), 4096), 64, 4, 1)
    tile = table[family][max(channels, 16)]
    if dtype.itemsize == 2:
        return tile
    # TF32 in three products needs twice the registers as well.
    return tile._replace(pixels=max(tile.pixels // 2, 16), reduction=tile.reduction // 2)


def _arithmetic(target: Target, dtype: torch.dtype) -> dict[str, Any]:
    operands = getattr(tl, str(dtype).removeprefix("torch."))
    if target.backend == "interpreter" and dtype == torch.bfloat16:
        operands = tl.float32  # the interpreter's bfloat16 dot is wrong
    return {
        "ACCUMULATOR": tl.float64 if dtype == torch.float64 else tl.float32,
        "DOT_DTYPE": operands,
        # Three TF32 products give float32 accuracy on NVIDIA's tensor cores; AMD's multiply float32 itself.
        "INPUT_PRECISION": "tf32x3" if target.backend == "cuda" else "ieee",
    }


def forward_launch(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    winner: Tensor | None,
    relu: bool,
    padding: int,
) -> Launch:
    """Convolution and epilogue; pools if `winner` is given. `weight` is ``(K, k, k, C)``, the others are NHWC."""
    (images, channels, height, width), (outputs, size) = x.shape, weight.shape[:2]
    pixels = images * (height + 2 * padding - size + 1) * (width + 2 * padding - size + 1)
    tile = _tile(PADDED_TILES if padding else FORWARD_TILES, target, outputs, x.dtype, pixels)
    block_n = max(outputs, 16)  # what tl.dot takes
    return Launch(
        _glyph_conv_fwd_kernel,
        grid=(triton.cdiv(pixels, tile.pixels), 1),
        arguments={
            "x": x,
            "weight": weight,
            "bias": bias,
            "residual": residual,
            "out": out,
            "winner": winner,
            "pixels": pixels,
        },
        constants={
            "H": height,
            "W": width,
            "C": channels,
            "K": outputs,
            "SIZE": size,
            "PADDING": padding,
            "RELU": relu,
            "POOL": winner is not None,
            "BLOCK_M": tile.pixels,
            "BLOCK_N": block_n,
            "BLOCK_K": tile.reduction,
            **_arithmetic(target, x.dtype),
        },
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def epilogue_backward_launch(
    target: Target,
    dout: Tensor,
    out: Tensor | None,
    winner: Tensor | None,
    g: Tensor,
    dbias: Tensor,
) -> Launch:
    """From `dout` to the gradient of the convolution's own output; ReLU if `out` is given, pooling if `winner` is."""
    outputs, height, width = g.shape[1:]
    positions = dout.numel() // outputs
    return Launch(
        _glyph_conv_epilogue_bwd_kernel,
        grid=(len(dbias),),
        arguments={"dout": dout, "out": out, "winner": winner, "g": g, "dbias": dbias, "positions": positions},
        constants={
            "OH": height,
            "OW": width,
            "K": outputs,
            "RELU": out is not None,
            "POOL": winner is not None,
            "ACCUMULATOR": _arithmetic(target, g.dtype)["ACCUMULATOR"],
            "BLOCK_P": _epilogue_block(target, outputs),
            "BLOCK_N": outputs,
        },
    )


def _epilogue_block(target: Target, channels: int) -> int:
    if target.backend == "interpreter":
        return 256
    # An access of 16 bytes for each of 128 threads, on AMD 256; two spill registers on sm_80 with Triton 3.7.1.
    return (2048 if target.backend == "hip" else 1024) // channels


def epilogue_programs(target: Target, dout: Tensor) -> int:
    """Return how many programs share `dout`, each with one partial sum of the bias gradient."""
    channels = dout.shape[1]
    blocks = triton.cdiv(dout.numel() // channels, _epilogue_block(target, channels))
    return min(blocks, 8 * launch.multiprocessors(dout.device))


def weight_gradient_launch(target: Target, g: Tensor, x: Tensor, dweight: Tensor, padding: int) -> Launch:
    """Partial sums of the weight gradient: `dweight` is ``(splits, K, k, k * C)``."""
    (_, channels, height, width), outputs = x.shape, g.shape[1]
    splits, _, size, row = dweight.shape
    pixels = g.numel() // outputs
    tile = _tile(WEIGHT_TILES, target, outputs, x.dtype, pixels)
    per_split = triton.cdiv(triton.cdiv(pixels, splits), tile.pixels) * tile.pixels
    return Launch(
        _glyph_conv_wgrad_kernel,
        grid=(size * splits, triton.cdiv(row, tile.reduction)),
        arguments={"g": g, "x": x, "dweight": dweight, "pixels": pixels, "pixels_per_split": per_split},
        constants={
            "H": height,
            "W": width,
            "C": channels,
            "K": outputs,
            "SIZE": size,
            "PADDING": padding,
            "BLOCK_P": tile.pixels,
            "BLOCK_M": max(outputs, 16),
            "BLOCK_N": tile.reduction,
            **_arithmetic(target, x.dtype),
        },
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def weight_gradient_splits(target: Target, g: Tensor, size: int, row: int) -> int:
    """Return into how many parts the pixels are split, so that all multiprocessors have work."""
    pixels = g.numel() // g.shape[1]
    tile = _tile(WEIGHT_TILES, target, g.shape[1], g.dtype, pixels)
    wanted = WEIGHT_PROGRAMS_PER_MULTIPROCESSOR * launch.multiprocessors(g.device)
    steps = triton.cdiv(pixels, tile.pixels)
    return max(1, min(steps, wanted // (size * triton.cdiv(row, tile.reduction))))


# Operators and their derivatives ---------------------------------------------------------------------


@torch.library.custom_op("glyphcrm::glyph_conv", mutates_args=())
def _glyph_conv(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> tuple[Tensor, Tensor]:
    """Return the output and, with `pool`, which pixel of each window won (else an empty tensor)."""
    shape = _output_shape(x, weight, pool, padding)
    out = launch.empty_nhwc(*shape, like=x)
    winner = launch.empty_nhwc(*shape, like=x, dtype=torch.uint8) if pool else None
    forward_launch(
        target_of(x.device),
        _nhwc(x),
        weight.permute(0, 2, 3, 1).contiguous(),
        bias.contiguous(),
        None if residual is None else _nhwc(residual),
        out,
        winner,
        relu,
        padding,
    ).run()
    return out, launch.empty(0, like=x, dtype=torch.uint8) if winner is None else winner


@_glyph_conv.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> tuple[Tensor, Tensor]:
    shape = _output_shape(x, weight, pool, padding)
    out = launch.empty_nhwc(*shape, like=x)
    return out, launch.empty_nhwc(*shape, like=x, dtype=torch.uint8) if pool else x.new_empty(0, dtype=torch.uint8)


@torch.library.custom_op("glyphcrm::glyph_conv_epilogue_backward", mutates_args=())
def _epilogue_backward(
    dout: Tensor, out: Tensor, winner: Tensor, relu: bool, pool: bool, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the gradient g of the convolution's own output, and of the bias."""
    target, dout = target_of(dout.device), _nhwc(dout)
    g = launch.empty_nhwc(*_unpooled_shape(dout, pool), like=dout)
    partial = launch.empty(
        epilogue_programs(target, dout),
        dout.shape[1],
        like=dout,
        dtype=torch.promote_types(dout.dtype, torch.float32),
    )
    epilogue_backward_launch(
        target, dout, _nhwc(out) if relu else None, _nhwc(winner) if pool else None, g, partial
    ).run()
    return g, partial.sum(0).to(bias_dtype)


@_epilogue_backward.register_fake
def _(
    dout: Tensor, out: Tensor, winner: Tensor, relu: bool, pool: bool, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    g = launch.empty_nhwc(*_unpooled_shape(dout, pool), like=dout)
    return g, dout.new_empty(dout.shape[1], dtype=bias_dtype)


@torch.library.custom_op("glyphcrm::glyph_conv_data_gradient", mutates_args=())
def _data_gradient(g: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Return the gradient of x: the convolution of g with the filter turned round, in and out exchanged."""
    turned = weight.flip(2, 3).permute(1, 2, 3, 0).contiguous()
    dx = launch.empty_nhwc(*_input_shape(g, weight, padding), like=g)
    forward_launch(
        target_of(g.device), _nhwc(g), turned, None, None, dx, None, False, weight.shape[-1] - 1 - padding
    ).run()
    return dx


@_data_gradient.register_fake
def _(g: Tensor, weight: Tensor, padding: int) -> Tensor:
    return launch.empty_nhwc(*_input_shape(g, weight, padding), like=g)


@torch.library.custom_op("glyphcrm::glyph_conv_weight_gradient", mutates_args=())
def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Return the gradient of the weight, in its dtype and memory order."""
    target, g = target_of(g.device), _nhwc(g)
    outputs, channels, size, _ = weight.shape
    splits = weight_gradient_splits(target, g, size, size * channels)
    partial = launch.empty(
        splits, outputs, size, size * channels, like=g, dtype=torch.promote_types(g.dtype, torch.float32)
    )
    weight_gradient_launch(target, g, _nhwc(x), partial, padding).run()
    total = partial.sum(0).view(outputs, size, size, channels)
    return torch.empty_like(weight).copy_(total.permute(0, 3, 1, 2))


@_weight_gradient.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, _, ctx.relu, ctx.pool, ctx.padding = inputs
    out, winner = output
    ctx.mark_non_differentiable(winner)
    ctx.save_for_backward(x, weight, out if ctx.relu else out.new_empty(0), winner)
    ctx.bias_dtype = bias.dtype


def _backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, out, winner = ctx.saved_tensors
    need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    g, dbias = _epilogue_backward(dout, out, winner, ctx.relu, ctx.pool, ctx.bias_dtype)
    return (
        _data_gradient(g, weight, ctx.padding) if need_x else None,
        _weight_gradient(g, x, weight, ctx.padding) if need_weight else None,
        dbias if need_bias else None,
        g if need_residual else None,
        None,
        None,
        None,
    )


_glyph_conv.register_autograd(_backward, setup_context=_setup_context)


def _nhwc(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _output_shape(x: Tensor, weight: Tensor, pool: bool, padding: int) -> tuple[int, int, int, int]:
    height, width = (side + 2 * padding - weight.shape[-1] + 1 for side in x.shape[2:])
    step = 2 if pool else 1
    return x.shape[0], weight.shape[0], height // step, width // step


def _unpooled_shape(dout: Tensor, pool: bool) -> tuple[int, int, int, int]:
    images, outputs, height, width = dout.shape
    step = 2 if pool else 1
    return images, outputs, height * step, width * step


def _input_shape(g: Tensor, weight: Tensor, padding: int) -> tuple[int, int, int, int]:
    height, width = (side - 2 * padding + weight.shape[-1] - 1 for side in g.shape[2:])
    return g.shape[0], weight.shape[1], height, width


# The function to call --------------------------------------------------------------------------------


def glyph_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    pool: bool = False,
    padding: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Return ``pool(relu(conv(x) + bias + residual))``, each step of the epilogue when asked for.

    Args:
        x: ``(U, C, H, W)``, float16, bfloat16 or float32, in channels-last memory order (NHWC) or copied to it;
            under autocast all tensors but the bias are cast to autocast's dtype.
        weight: ``(K, C, k, k)`` in the dtype of x; the kernels take C and K of 4, 8, 16, 32, 64 and 128.
        bias: ``(K,)``.
        residual: ``(U, K, H', W')``, added before the ReLU.
        relu: whether to clamp at zero.
        pool: whether to max-pool 2x2 with stride 2; the kernels need even H' and W'.
        padding: zeros around `x`, in pixels, less than k.
        backend: "auto" (the Triton kernels on a GPU that they are built for; on a CPU the Fourier domain for float32
            and large filters, see fourier_conv.py; else PyTorch), "triton", or "reference" (PyTorch).

    Returns:
        ``(U, K, H', W')`` with ``H' = H + 2 padding - k + 1``, halved by `pool`, in the dtype of x and
        channels-last memory order.

    Raises:
        ValueError: shapes or dtypes that do not fit; with ``backend="triton"`` sizes or tensors that the
            kernels do not take.
    """
    _check_shapes(x, weight, bias, residual, pool, padding)
    for name, dtype in (("x", x.dtype), ("bias", bias.dtype)):
        if not dtype.is_floating_point:
            raise ValueError(f"glyph_conv: {name} is {dtype}; it must be floating point")
    narrow = autocast_dtype(x)
    if narrow is not None:
        x, weight = x.to(narrow), weight.to(narrow)
        residual = residual if residual is None else residual.to(narrow)
    for name, tensor in (("weight", weight), ("residual", residual)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"glyph_conv: {name} is {tensor.dtype}, but x is {x.dtype}; give them one dtype")
    triton_runs = use_triton("glyph_conv", backend, x=x, weight=weight, bias=bias, residual=residual)
    if triton_runs and (unfit := _unfit(x, weight, pool, padding)):
        if backend == "triton":
            raise ValueError(f"glyph_conv: {unfit}; use backend='auto'")
        triton_runs = False
    if triton_runs:
        return _glyph_conv(x, weight, bias, residual, relu, pool, padding)[0]
    if backend == "auto" and fourier_pays(x, weight, bias, residual, padding):
        y = fourier_conv(x, weight, bias, residual, relu)
        return F.max_pool2d(y, 2) if pool else y
    return glyph_conv_reference(x, weight, bias.to(x.dtype), residual, relu, pool, padding)


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, pool: bool, padding: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"glyph_conv: x has shape {tuple(x.shape)}; it must be (U, C, H, W)")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1] or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"glyph_conv: weight has shape {tuple(weight.shape)}; it must be (K, {x.shape[1]}, k, k)")
    outputs, _, size, _ = weight.shape
    if bias.shape != (outputs,):
        raise ValueError(f"glyph_conv: bias has shape {tuple(bias.shape)}; it must be ({outputs},)")
    if not 0 <= padding < size:
        raise ValueError(f"glyph_conv: padding={padding}; it must be in [0, {size})")
    images, _, height, width = _output_shape(x, weight, False, padding)
    if min(height, width) < (2 if pool else 1):
        raise ValueError(f"glyph_conv: x has {x.shape[2]}x{x.shape[3]} pixels, too few for this {size}x{size} filter")
    if residual is not None and residual.shape != (images, outputs, height, width):
        expected = (images, outputs, height, width)
        raise ValueError(f"glyph_conv: residual has shape {tuple(residual.shape)}; the convolution gives {expected}")


def _unfit(x: Tensor, weight: Tensor, pool: bool, padding: int) -> str:
    """Say what the kernels do not take, or nothing."""
    for name, channels in (("x", x.shape[1]), ("weight", weight.shape[0])):
        if channels not in CHANNELS:
            return f"{name} has {channels} channels; the kernels take {', '.join(map(str, CHANNELS))}"
    images, _, height, width = _output_shape(x, weight, False, padding)
    if images * height * width >= 2**31:
        return f"the output has {images} x {height} x {width} pixels; the kernels count them in 32 bits"
    if pool and (height % 2 or width % 2):
        return f"pooling needs an even output; here it is {height}x{width}"
    return ""
