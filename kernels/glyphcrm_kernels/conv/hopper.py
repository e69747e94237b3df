"""Glyph convolution on Hopper: launches instead of those of triton.py, whose operators start them.

They reach wgmma and TMA in Gluon, which Triton still calls experimental: hopper_kernels.py and hopper_wgrad_kernels.py
say how, hopper_tiles.py for which sizes.

Floor: as in triton.py, the arithmetic. The data gradient multiplies the zeros left and right of the image as well, 1.2
to 1.33 times the products. Partial sums of the weight gradient are 58 MB on 132 multiprocessors, written and read once.
Images are taken 8 or 16 together, and a last group that is not full costs as much as a full one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glyphcrm_kernels._shared import buffers
from glyphcrm_kernels._shared.launch import Launch
from glyphcrm_kernels._shared.optional_triton import triton
from glyphcrm_kernels.conv import hopper_tiles as tiles

ALIGNMENT = 16  # bytes, of what TMA reads
POOLED_COLUMNS = 8  # of a program that pools
STEP_IMAGES = 16  # of the weight gradient, the K of a wgmma
STEP_BOX = 4  # columns of one copy there
STEP_WARPS = 8


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    winner: Tensor | None,
    relu: bool,
    padding: int,
) -> bool:
    """Fill `out`, and return True; return False for sizes without a tile. Arguments as in triton.py's function."""
    outputs, size = weight.shape[:2]
    if bias is None:
        table, covered = tiles.DATA_TILES, size - 1
    else:
        table, covered = tiles.FORWARD_TILES if winner is None else tiles.POOLED_TILES, 0
    tile = tiles.tile(table, x.shape, x.dtype, outputs, size)
    if tile is None or padding != covered:
        return False
    convolution(tile, x, weight, bias, residual, out, winner, relu, padding).run()
    return True


def convolution(
    tile: tiles.Tile,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    winner: Tensor | None,
    relu: bool,
    padding: int,
) -> Launch:
    """Return the launch that fills `out`, with `winner` pooled; `weight` is ``(K, k, k, C)``, the others are NHWC.

    Raises:
        ValueError: the width of the convolution, with pooling its height, is no sum of two powers of two.
    """
    # Gluon takes 80 ms to import, and few machines have use for it.
    from glyphcrm_kernels._shared.gluon import describe
    from glyphcrm_kernels.conv.hopper_kernels import _glyph_conv_hopper_fwd_kernel as kernel

    x, weight = _aligned(x), _aligned(weight)
    (images, channels, height, width), (outputs, size) = x.shape, weight.shape[:2]
    pool, taps = winner is not None, size * size * channels
    out_height, out_width = height + 2 * padding - size + 1, width + 2 * padding - size + 1
    places = out_height if pool else out_width
    first, second = _two_powers(places)
    box = next(n for n in (8, 4, 2, 1) if (places + size - 1) % n == 0)
    row, pixel, image = width * channels, channels, height * width * channels
    if pool:
        columns, lines = POOLED_COLUMNS, out_width // POOLED_COLUMNS
        group = tile.minor // columns
        shape, strides = [height, images, width, channels], [row, image, pixel, 1]
        block = [box, group, columns, tile.channels]
    else:
        columns, lines, group = 1, out_height, tile.minor
        shape, strides = [height, width, images, channels], [row, pixel, image, 1]
        block = [1, box, group, tile.channels]
    return Launch(
        kernel,
        (triton.cdiv(images, group) * lines,),
        {
            "x_desc": describe(x.permute(0, 2, 3, 1), shape, strides, block),
            "w_desc": describe(weight, [outputs, taps], [taps, 1], [outputs, tile.channels]),
            "bias": bias,
            "residual": residual,
            "out": out,
            "winner": winner,
            "images": images,
        },
        {"H": height, "W": width, "C": channels, "K": outputs, "SIZE": size, "PADDING": padding}
        | {"RELU": relu, "POOL": pool, "COLUMNS": columns, "MINOR": tile.minor, "P0": first, "P1": second}
        | {"BOX": box, "CHUNK": tile.channels, "STAGES": tile.stages, "SLOTS": tile.slots, "WARPS": tile.warps},
        num_warps=tile.warps,
    )


def partial_sums(g: Tensor, x: Tensor, size: int, padding: int) -> Tensor | None:
    """Return the weight gradient's parts, ``(splits, K, k, k * C)`` float32; None for sizes without a tile."""
    tile = tiles.tile(tiles.WEIGHT_TILES, x.shape, x.dtype, g.shape[1], size)
    if tile is None or padding:
        return None
    splits, (outputs, channels) = tiles.weight_gradient_splits(g), (g.shape[1], x.shape[1])
    partial = buffers.empty(splits, outputs, size, size * channels, like=g, dtype=torch.float32)
    weight_gradient(tile, g, x, partial, padding).run()
    return partial


def weight_gradient(tile: tiles.WeightTile, g: Tensor, x: Tensor, partial: Tensor, padding: int) -> Launch:
    """Return the launch that fills `partial` ``(splits, K, k, k * C)``; g and x are NHWC."""
    from glyphcrm_kernels._shared.gluon import describe
    from glyphcrm_kernels.conv.hopper_wgrad_kernels import _glyph_conv_hopper_wgrad_kernel as kernel

    splits, _, size, _ = partial.shape
    descriptors = []
    for tensor in (_aligned(x), _aligned(g)):
        images, channels, height, width = tensor.shape
        strides = [width * channels, channels, height * width * channels, 1]
        block = [1, STEP_BOX, STEP_IMAGES, channels]
        descriptors.append(describe(tensor.permute(0, 2, 3, 1), [height, width, images, channels], strides, block))
    (images, channels, height, width), (outputs, out_height, out_width) = x.shape, g.shape[1:]
    steps = triton.cdiv(images, STEP_IMAGES) * out_height * (out_width // tile.columns)
    return Launch(
        kernel,
        (size * splits,),
        {"x_desc": descriptors[0], "g_desc": descriptors[1], "dweight": partial, "steps": triton.cdiv(steps, splits)},
        {"H": height, "W": width, "C": channels, "K": outputs, "SIZE": size, "PADDING": padding}
        | {"COLUMNS": tile.columns, "BOX": STEP_BOX, "STAGES": tile.stages, "AHEAD": tile.ahead, "WARPS": STEP_WARPS},
        num_warps=STEP_WARPS,
    )


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.resolve_neg()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _two_powers(places: int) -> tuple[int, int]:
    """Return two powers of two, the larger first, that sum to `places`; the second may be 0."""
    large = 1 << places.bit_length() - 1
    small = places - large
    if small & (small - 1):
        raise ValueError(f"glyph_conv: {places} is no sum of two powers of two; the Hopper kernels compute such sides")
    return large, small
