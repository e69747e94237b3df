"""Glyph convolution in Triton: launches, operators and derivatives.

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
times. The data gradient is the forward kernel on g with the filter rotated by 180°; the weight gradient is
a product over all pixels, split over programs whose partial sums are added in a fixed order.

Floor at 1,700 characters, base size, bf16: the three 9x9 convolutions are 3.6 TFLOP forward and 7.2
backward, against 1.8 GB and 5.4 GB of activations: bound by arithmetic on every GPU named here. Above the
floor, the data gradient multiplies the zeros left and right of the image as well, 1.2 to 1.33 times the
products; those above and below it are left out.

On Hopper the same operators start the launches of hopper.py where those cover the sizes, if they are told to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glyphcrm_kernels._shared import buffers, targets
from glyphcrm_kernels._shared.gpus import triton_obstacle
from glyphcrm_kernels._shared.launch import Plan
from glyphcrm_kernels._shared.memo import remembered
from glyphcrm_kernels._shared.operators import operator
from glyphcrm_kernels._shared.optional_triton import tl, triton
from glyphcrm_kernels._shared.sizes import known
from glyphcrm_kernels._shared.targets import Target, dot_arguments, target_of
from glyphcrm_kernels.conv import hopper, tiles
from glyphcrm_kernels.conv import triton_kernels as kernels
from glyphcrm_kernels.conv.reference import output_shape


def obstacle(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> str:
    """Return what keeps the kernels from running, or an empty string."""
    return triton_obstacle(x=x, weight=weight, bias=bias, residual=residual) or size_obstacle(
        x.shape, weight.shape, pool, padding
    )


def size_obstacle(shape: Sequence[int], filters: Sequence[int], pool: bool, padding: int) -> str:
    """Return what keeps the kernels from taking x and weight of these shapes, or an empty string."""
    for name, channels in (("x", shape[1]), ("weight", filters[0])):
        if channels not in tiles.CHANNELS:
            takes = ", ".join(map(str, tiles.CHANNELS))
            return f"{name} has {channels} channels; the kernels take {takes}: change them"
    images = shape[0]
    height, width = (side + 2 * padding - filters[3] + 1 for side in shape[2:])
    for name, size in (("x", shape[2:]), ("the output", (height, width))):  # the data gradient counts those of x
        if known(images * size[0] * size[1] >= 2**31, otherwise=False):
            return (
                f"{name} has {images} x {size[0]} x {size[1]} pixels; the kernels count in 32 bits: take fewer images"
            )
    if pool and (height % 2 or width % 2):
        return f"pooling needs an even output; here it is {height}x{width}: change the padding"
    return ""


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    pool: bool,
    padding: int,
    on_hopper: bool = False,
) -> Tensor:
    """Return y; arguments as in `glyph_conv`, and whether the kernels for Hopper do what they can, backward too."""
    y: Tensor = _glyph_conv(x, weight, bias, residual, relu, pool, padding, on_hopper)
    return y


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    winner: Tensor | None,
    relu: bool,
    padding: int,
    on_hopper: bool,
) -> None:
    """Fill `out`; pool if `winner` is given. `weight` is ``(K, k, k, C)``, the others are NHWC."""
    if on_hopper and hopper.convolve(x, weight, bias, residual, out, winner, relu, padding):
        return
    (outputs, size), pool = weight.shape[:2], winner is not None
    plan = _convolution_plan(target_of(x.device), x.shape, outputs, size, x.dtype, padding, relu, pool)
    plan.start(x, weight, bias, residual, out, winner)


@remembered
def _convolution_plan(
    target: Target, shape: torch.Size, outputs: int, size: int, dtype: torch.dtype, padding: int, relu: bool, pool: bool
) -> Plan:
    images, channels, height, width = shape
    pixels = images * (height + 2 * padding - size + 1) * (width + 2 * padding - size + 1)
    tile = tiles.tile(tiles.PADDED_TILES if padding else tiles.FORWARD_TILES, target, outputs, dtype, pixels)
    block_n = max(outputs, 16)  # what tl.dot takes
    return Plan(
        kernels._glyph_conv_fwd_kernel,
        (triton.cdiv(pixels, tile.pixels), 1),
        (pixels,),
        {"H": height, "W": width, "C": channels, "K": outputs, "SIZE": size, "PADDING": padding}
        | {"RELU": relu, "POOL": pool, "ACCUMULATOR": _accumulator(dtype)}
        | {"BLOCK_M": tile.pixels, "BLOCK_N": block_n, "BLOCK_K": tile.reduction, **dot_arguments(target, dtype)},
        tile.warps,
        tile.stages,
    )


def _accumulator(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


@operator("glyphcrm::glyph_conv", results=1)
def _glyph_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    pool: bool,
    padding: int,
    on_hopper: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output and, with `pool`, which pixel of each window won (else an empty tensor)."""
    out, winner = _outputs(x, weight, bias, residual, relu, pool, padding, on_hopper)
    filters, added = weight.permute(0, 2, 3, 1).contiguous(), None if residual is None else _nhwc(residual)
    _convolve(_nhwc(x), filters, bias.contiguous(), added, out, winner if pool else None, relu, padding, on_hopper)
    return out, winner


@_glyph_conv.register_fake
def _outputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    pool: bool,
    padding: int,
    on_hopper: bool,
) -> tuple[Tensor, Tensor]:
    shape = output_shape(x, weight, pool, padding)
    winner = buffers.empty_nhwc(*(shape if pool else (0, 1, 1, 1)), like=x, dtype=torch.uint8)
    return buffers.empty_nhwc(*shape, like=x), winner


@remembered
def _epilogue_plan(
    target: Target, multiprocessors: int, shape: torch.Size, dtype: torch.dtype, relu: bool, pool: bool
) -> Plan:
    images, outputs, height, width = shape
    step = 2 if pool else 1
    return Plan(
        kernels._glyph_conv_epilogue_bwd_kernel,
        (tiles.epilogue_programs(target, multiprocessors, images * height * width, outputs),),
        (images * height * width,),
        {"OH": height * step, "OW": width * step, "K": outputs, "RELU": relu, "POOL": pool}
        | {"ACCUMULATOR": _accumulator(dtype), "BLOCK_P": tiles.epilogue_block(target, outputs), "BLOCK_N": outputs},
    )


@operator("glyphcrm::glyph_conv_epilogue_backward")
def _epilogue_backward(
    dout: Tensor, out: Tensor, winner: Tensor, relu: bool, pool: bool, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the gradient g of the convolution's own output, and of the bias."""
    dout, device = _nhwc(dout), dout.device
    multiprocessors = targets.multiprocessors(device)
    plan = _epilogue_plan(target_of(device), multiprocessors, dout.shape, dout.dtype, relu, pool)
    g = buffers.empty_nhwc(*_unpooled_shape(dout, pool), like=dout)
    wide = torch.promote_types(dout.dtype, torch.float32)
    partial = buffers.empty(*plan.grid, dout.shape[1], like=dout, dtype=wide)
    plan.start(dout, _nhwc(out) if relu else None, _nhwc(winner) if pool else None, g, partial)
    return g, partial.sum(0).to(bias_dtype)


@_epilogue_backward.register_fake
def _(
    dout: Tensor, out: Tensor, winner: Tensor, relu: bool, pool: bool, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    g = buffers.empty_nhwc(*_unpooled_shape(dout, pool), like=dout)
    return g, dout.new_empty(dout.shape[1], dtype=bias_dtype)


@operator("glyphcrm::glyph_conv_data_gradient")
def _data_gradient(g: Tensor, weight: Tensor, padding: int, on_hopper: bool) -> Tensor:
    """Return the gradient of x: the convolution of g with the filter rotated by 180°, in and out exchanged."""
    turned = weight.flip(2, 3).permute(1, 2, 3, 0).contiguous()
    dx = _like_x(g, weight, padding, on_hopper)
    _convolve(_nhwc(g), turned, None, None, dx, None, False, weight.shape[-1] - 1 - padding, on_hopper)
    return dx


@_data_gradient.register_fake
def _like_x(g: Tensor, weight: Tensor, padding: int, on_hopper: bool) -> Tensor:
    height, width = (side - 2 * padding + weight.shape[-1] - 1 for side in g.shape[2:])
    return buffers.empty_nhwc(g.shape[0], weight.shape[1], height, width, like=g)


@operator("glyphcrm::glyph_conv_weight_gradient")
def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor, padding: int, on_hopper: bool) -> Tensor:
    """Return the gradient of the weight, in its dtype and memory order."""
    g, x, (outputs, channels, size, _) = _nhwc(g), _nhwc(x), weight.shape
    partial = hopper.partial_sums(g, x, size, padding) if on_hopper else None
    if partial is None:
        partial = _partial_sums(g, x, size, padding)
    total = partial.sum(0).view(outputs, size, size, channels)
    return torch.empty_like(weight).copy_(total.permute(0, 3, 1, 2))


def _partial_sums(g: Tensor, x: Tensor, size: int, padding: int) -> Tensor:
    """Return the weight gradient's parts, ``(splits, K, k, k * C)`` in the accumulator's dtype."""
    target, multiprocessors, channels = target_of(g.device), targets.multiprocessors(g.device), x.shape[1]
    plan, splits = _weight_plan(target, multiprocessors, g.shape, x.shape, x.dtype, size, padding)
    wide = torch.promote_types(g.dtype, torch.float32)
    partial = buffers.empty(splits, g.shape[1], size, size * channels, like=g, dtype=wide)
    plan.start(g, x, partial)
    return partial


@remembered
def _weight_plan(
    target: Target,
    multiprocessors: int,
    of_g: torch.Size,
    of_x: torch.Size,
    dtype: torch.dtype,
    size: int,
    padding: int,
) -> tuple[Plan, int]:
    """Return the plan and the number of parts."""
    (images, outputs, out_height, out_width), (_, channels, height, width) = of_g, of_x
    pixels, row = images * out_height * out_width, size * channels
    tile = tiles.tile(tiles.WEIGHT_TILES, target, outputs, dtype, pixels)
    splits = tiles.weight_gradient_splits(tile, multiprocessors, pixels, size, row)
    plan = Plan(
        kernels._glyph_conv_wgrad_kernel,
        (size * splits, triton.cdiv(row, tile.reduction)),
        (pixels, triton.cdiv(triton.cdiv(pixels, splits), tile.pixels) * tile.pixels),
        {"H": height, "W": width, "C": channels, "K": outputs, "SIZE": size, "PADDING": padding}
        | {"ACCUMULATOR": _accumulator(dtype), "BLOCK_P": tile.pixels, "BLOCK_M": max(outputs, 16)}
        | {"BLOCK_N": tile.reduction, **dot_arguments(target, dtype)},
        tile.warps,
        tile.stages,
    )
    return plan, splits


@_weight_gradient.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor, padding: int, on_hopper: bool) -> Tensor:
    return torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, _, ctx.relu, ctx.pool, ctx.padding, ctx.on_hopper = inputs
    out, winner = output
    ctx.mark_non_differentiable(winner)
    ctx.save_for_backward(x, weight, out if ctx.relu else out.new_empty(0), winner)
    ctx.bias_dtype = bias.dtype
    ctx.set_materialize_grads(False)  # or zeros would be made as the winner's gradient


def _backward(ctx: Any, dout: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dout is None:  # nothing that is differentiated depends on the output
        return (None,) * 8
    x, weight, out, winner = ctx.saved_tensors
    need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    g, dbias = _epilogue_backward(dout, out, winner, ctx.relu, ctx.pool, ctx.bias_dtype)
    return (
        _data_gradient(g, weight, ctx.padding, ctx.on_hopper) if need_x else None,
        _weight_gradient(g, x, weight, ctx.padding, ctx.on_hopper) if need_weight else None,
        dbias if need_bias else None,
        g if need_residual else None,
        *[None] * 4,
    )


_glyph_conv.register_autograd(_backward, setup_context=_setup_context)


def _nhwc(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _unpooled_shape(dout: Tensor, pool: bool) -> tuple[int, int, int, int]:
    images, outputs, height, width = dout.shape
    step = 2 if pool else 1
    return images, outputs, height * step, width * step
