"""Glyph stem: from packed bits to the first convolution's activation and its pooled shortcut.

One pass unpacks the wanted glyphs, convolves them 3x3, applies the ReLU, and pools the result 2x2.
The two position channels are the same for every glyph, so their share of the convolution, and the
bias, are one ``constant (48, 48, C)`` map; plain PyTorch computes it, and autograd differentiates it.

Bytes, at 1,700 distinct glyphs, C = 64, bfloat16:

* Forward: 288 bytes an image in, the activation (501 MB) and the shortcut (125 MB) out: 627 MB. That
  is the floor, as both are results. A program keeps its tile of the constant map in registers for
  `IMAGES_PER_PROGRAM` images, because the map (590 KB) once an image would be 1 GB from the L2 cache.
* Kept for the backward: the activation and nothing of its own; it stays alive anyway as the input of
  the next convolution. From it follow where the ReLU was open and which pixel of a window was the maximum.
* Backward: the activation, its gradient, the shortcut's gradient in: 1,128 MB; the partial sums
  out (0.6 MB a split, 29 MB with their addition on an H100). The activation could be computed
  once more from the bits, which would save its 501 MB (44 %) for nine multiply-adds an element.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels import launch
from glyphcrm_kernels._triton import tl, triton
from glyphcrm_kernels.backend import autocast_dtype, check_index, use_triton
from glyphcrm_kernels.glyph_stem_cpu import glyph_stem_cpu, stem_fits_cpu
from glyphcrm_kernels.launch import Launch, Target, target_of

IMAGE_SIZE = 48
PACKED_BYTES = IMAGE_SIZE * IMAGE_SIZE // 8
POOLED_SIZE = IMAGE_SIZE // 2
TAPS = 9


def unpack_bits(bitmaps: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack ``(N, 288)`` uint8 (most significant bit first, row by row) to ``(N, 1, 48, 48)`` of 0 and 1."""
    shifts = torch.arange(7, -1, -1, device=bitmaps.device, dtype=torch.uint8)
    bits = (bitmaps.unsqueeze(-1) >> shifts) & 1
    return bits.view(-1, 1, IMAGE_SIZE, IMAGE_SIZE).to(dtype)


def _constant_map(weight: Tensor, bias: Tensor, position_map: Tensor) -> Tensor:
    """Return what the position channels and the bias add to every image: ``(48, 48, C)``, float32 or float64."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    # A matrix product, as cuDNN's convolution would by default round float32 to TF32.
    device = weight.device.type
    has_autocast = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if has_autocast else contextlib.nullcontext():
        patches = F.unfold(position_map.to(dtype).unsqueeze(0), 3, padding=1)[0]
        constant = torch.addmm(bias.to(dtype), patches.T, weight[:, 1:].flatten(1).T.to(dtype))
    return constant.view(IMAGE_SIZE, IMAGE_SIZE, -1)


def glyph_stem_reference(
    rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `glyph_stem` in plain PyTorch; arguments and results are the same."""
    dtype = _result_dtype(weight)
    constant = _constant_map(weight, bias, position_map).permute(2, 0, 1).to(dtype)
    ink = F.conv2d(unpack_bits(bitmaps[rows], dtype), weight[:, :1].to(dtype), padding=1)
    activation = F.relu((ink + constant).contiguous(memory_format=torch.channels_last))
    return activation, F.max_pool2d(activation, 2)


@triton.jit
def _windows(
    rows,  # (images,) int32 or int64
    bitmaps,  # (N, 288) uint8
    image,  # which of `rows`
    pooled,  # (Q,) int32, pooled pixels
    IMAGE_SIZE: tl.constexpr,
):
    """Return for each pooled pixel its 16 bits of ink, int32: row r, column s of the 4x4 window is bit 15 - 4r - s."""
    glyph = bitmaps + tl.load(rows + image).to(tl.int64) * (IMAGE_SIZE * IMAGE_SIZE // 8)
    top = pooled // (IMAGE_SIZE // 2) * 2 - 1
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


@triton.jit
def _glyph_stem_fwd_kernel(
    rows,  # (images,) int32 or int64
    bitmaps,  # (N, 288) uint8
    ink_weight,  # (9, C) float32
    constant,  # (48, 48, C) float32
    activation,  # out: (images, 48, 48, C)
    pooled,  # out: (images, 24, 24, C)
    images,
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
    window = _windows(rows, bitmaps, first, q, IMAGE_SIZE)
    for image in range(first, tl.minimum(first + IMAGES, images)):
        bits = window[None, :]
        # The next image's bits are on their way while this one is computed.
        window = _windows(rows, bitmaps, tl.minimum(image + 1, images - 1), q, IMAGE_SIZE)
        y = start
        for tap in tl.static_range(9):
            w = tl.load(ink_weight + tap * C + channel)
            bit = (bits >> (origin - tap // 3 * 4 - tap % 3)) & 1
            y += bit.to(w.dtype)[:, :, None] * w[None, None, :]
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(activation + image * (IMAGE_SIZE * IMAGE_SIZE * C) + offsets, y)
        # Rounding keeps the order, so this is also the maximum of what was stored.
        tl.store(pooled + image * (IMAGE_SIZE * IMAGE_SIZE // 4 * C) + pooled_offsets, tl.max(y, 0))


@triton.jit
def _glyph_stem_bwd_kernel(
    rows,  # (images,) int32 or int64
    bitmaps,  # (N, 288) uint8
    activation,  # (images, 48, 48, C)
    dactivation,  # (images, 48, 48, C)
    dpooled,  # (images, 24, 24, C)
    dink_weight,  # out: (splits, tiles, 9, C) float32, partial sums
    dconstant,  # out: (splits, 48, 48, C) float32, partial sums
    images,
    images_per_split,
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
        window = _windows(rows, bitmaps, image, flat_q, IMAGE_SIZE)
        bits = tl.where(tap < 9, (window[None, :] >> tl.maximum(shift, 0)) & 1, 0)
        flat_g = tl.reshape(g, (4 * Q, C)).to(DOT_DTYPE)
        dw = tl.dot(bits.to(DOT_DTYPE), flat_g, dw, input_precision=INPUT_PRECISION, out_dtype=dtype)

    tl.store(dconstant + split * (IMAGE_SIZE * IMAGE_SIZE * C) + offsets, dc)
    partial = split * tl.num_programs(0) + tile
    tl.store(dink_weight + (partial * 9 + tap) * C + channel[None, :], dw, mask=tap < 9)


# Tiles. A program works on some windows of 2x2 pixels, all channels; their number must be a power of two that
# divides 24 * 24. With THREADS_PER_CHANNEL threads a channel, 16 windows in half precision and 8 in float32 are one
# access of 16 bytes a thread for each pixel of the window. More windows spill registers in the backward.
CHANNELS = (4, 16, 32, 64)  # what the kernels were compiled and tested for; 4 is for tests
THREADS_PER_CHANNEL = 2
IMAGES_PER_PROGRAM = 16  # forward: more saves reads of the constant map, fewer fills the GPU earlier
# Backward: 256 (sm_80) or 384 (sm_90) threads fit on a multiprocessor at once; this is whole waves of either.
THREADS_PER_MULTIPROCESSOR = 768
BACKWARD_STAGES = 2


def _tile(target: Target, channels: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return how many windows a program works on, and its warps."""
    if target.backend == "interpreter":
        return 64, 4  # its time goes by the number of programs
    warp = 64 if target.backend == "hip" else 32
    threads = max(warp, THREADS_PER_CHANNEL * channels)
    return min(64, threads * 16 // channels) // dtype.itemsize, threads // warp


def backward_partials(target: Target, activation: Tensor) -> tuple[int, int]:
    """Return how many partial sums the backward kernel leaves: (splits of the images, tiles of an image)."""
    images, channels = activation.shape[:2]
    windows, warps = _tile(target, channels, activation.dtype)
    tiles = POOLED_SIZE * POOLED_SIZE // windows
    programs = THREADS_PER_MULTIPROCESSOR // (32 * warps) * launch.multiprocessors(activation.device)
    return max(1, min(programs // tiles, images)), tiles


def glyph_stem_fwd_launch(
    target: Target,
    rows: Tensor,
    bitmaps: Tensor,
    ink_weight: Tensor,
    constant: Tensor,
    activation: Tensor,
    pooled: Tensor,
) -> Launch:
    """Describe the forward kernel's launch; `activation` and `pooled` are the outputs."""
    images, channels = activation.shape[:2]
    windows, warps = _tile(target, channels, activation.dtype)
    return Launch(
        _glyph_stem_fwd_kernel,
        grid=(POOLED_SIZE * POOLED_SIZE // windows, triton.cdiv(images, IMAGES_PER_PROGRAM)),
        arguments={
            "rows": rows,
            "bitmaps": bitmaps,
            "ink_weight": ink_weight,
            "constant": constant,
            "activation": activation,
            "pooled": pooled,
            "images": images,
        },
        constants={"IMAGE_SIZE": IMAGE_SIZE, "C": channels, "Q": windows, "IMAGES": IMAGES_PER_PROGRAM},
        num_warps=warps,
        num_stages=1,
    )


def glyph_stem_bwd_launch(
    target: Target,
    rows: Tensor,
    bitmaps: Tensor,
    activation: Tensor,
    dactivation: Tensor,
    dpooled: Tensor,
    dink_weight: Tensor,
    dconstant: Tensor,
) -> Launch:
    """Describe the backward kernel's launch; `dink_weight` and `dconstant` are the outputs, one partial sum a split."""
    images, channels = activation.shape[:2]
    splits, tiles = dink_weight.shape[:2]
    windows, warps = _tile(target, channels, activation.dtype)
    dot_dtype: Any = getattr(tl, str(activation.dtype).removeprefix("torch."))
    if target.backend == "interpreter" and activation.dtype == torch.bfloat16:
        dot_dtype = tl.float32  # the interpreter's bfloat16 dot is wrong
    return Launch(
        _glyph_stem_bwd_kernel,
        grid=(tiles, splits),
        arguments={
            "rows": rows,
            "bitmaps": bitmaps,
            "activation": activation,
            "dactivation": dactivation,
            "dpooled": dpooled,
            "dink_weight": dink_weight,
            "dconstant": dconstant,
            "images": images,
            "images_per_split": triton.cdiv(images, splits),
        },
        constants={
            "IMAGE_SIZE": IMAGE_SIZE,
            "C": channels,
            "Q": windows,
            "DOT_DTYPE": dot_dtype,
            "INPUT_PRECISION": "tf32x3" if target.backend == "cuda" else "ieee",
        },
        num_warps=warps,
        num_stages=BACKWARD_STAGES,
    )


@torch.library.custom_op("glyphcrm::glyph_stem", mutates_args=())
def _glyph_stem(
    rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    activation, pooled = _outputs(rows, constant, dtype)
    glyph_stem_fwd_launch(target_of(rows.device), rows, bitmaps, ink_weight, constant, activation, pooled).run()
    return activation, pooled


@_glyph_stem.register_fake
def _(rows: Tensor, bitmaps: Tensor, ink_weight: Tensor, constant: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _outputs(rows, constant, dtype)


def _outputs(rows: Tensor, constant: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    images, channels = rows.shape[0], constant.shape[2]
    activation = launch.empty_nhwc(images, channels, IMAGE_SIZE, IMAGE_SIZE, like=constant, dtype=dtype)
    return activation, launch.empty_nhwc(images, channels, POOLED_SIZE, POOLED_SIZE, like=constant, dtype=dtype)


@torch.library.custom_op("glyphcrm::glyph_stem_backward", mutates_args=())
def _glyph_stem_backward(
    rows: Tensor, bitmaps: Tensor, activation: Tensor, dactivation: Tensor, dpooled: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `ink_weight` and `constant`, in `dtype`."""
    channels = activation.shape[1]
    target = target_of(activation.device)
    splits, tiles = backward_partials(target, activation)
    dink_weight = launch.empty(splits, tiles, TAPS, channels, like=activation, dtype=dtype)
    dconstant = launch.empty(splits, IMAGE_SIZE, IMAGE_SIZE, channels, like=activation, dtype=dtype)
    # The kept activation as well: hooks may have brought it back in another order (`save_on_cpu` does).
    activation = activation.contiguous(memory_format=torch.channels_last)
    dactivation = dactivation.contiguous(memory_format=torch.channels_last)
    dpooled = dpooled.contiguous(memory_format=torch.channels_last)
    glyph_stem_bwd_launch(target, rows, bitmaps, activation, dactivation, dpooled, dink_weight, dconstant).run()
    return dink_weight.sum((0, 1)), dconstant.sum(0)


@_glyph_stem_backward.register_fake
def _(
    rows: Tensor, bitmaps: Tensor, activation: Tensor, dactivation: Tensor, dpooled: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    channels = activation.shape[1]
    return (
        activation.new_empty(TAPS, channels, dtype=dtype),
        activation.new_empty(IMAGE_SIZE, IMAGE_SIZE, channels, dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, bitmaps, _, constant, _ = inputs
    ctx.save_for_backward(rows, bitmaps, output[0])
    ctx.dtype = constant.dtype


def _backward(ctx: Any, dactivation: Tensor, dpooled: Tensor) -> tuple[Tensor | None, ...]:
    rows, bitmaps, activation = ctx.saved_tensors
    dink_weight, dconstant = _glyph_stem_backward(rows, bitmaps, activation, dactivation, dpooled, ctx.dtype)
    return None, None, dink_weight, dconstant, None


_glyph_stem.register_autograd(_backward, setup_context=_setup_context)


def glyph_stem(
    rows: Tensor,
    bitmaps: Tensor,
    weight: Tensor,
    bias: Tensor,
    position_map: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return ``relu(conv3x3([image, x, y]))`` of the wanted glyphs, and that max-pooled 2x2.

    Args:
        rows: ``(U,)`` int64 or int32, the atlas rows to draw, in any order, repeated or not.
        bitmaps: ``(N, 288)`` uint8, the atlas: bit-packed 48x48 images, ink = 1.
        weight: ``(C, 3, 3, 3)``, input channels image, x, y.
        bias: ``(C,)``, in the dtype of `weight`.
        position_map: ``(2, 48, 48)``, the position channels x and y.
        backend: "auto" (the Triton kernels on a GPU that they are built for; on a CPU, for float32, a look-up, see
            glyph_stem_cpu.py; else PyTorch), "triton" or "reference" (PyTorch), see `backend.use_triton`; with "auto"
            PyTorch also runs where no kernel covers C.

    Returns:
        The activation ``(U, C, 48, 48)`` and the max-pooled shortcut ``(U, C, 24, 24)``, both in
        channels-last memory order (NHWC), in the dtype of `weight`, or in autocast's where that is on.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device; a row is not in the atlas (looked
            at on a CPU, and in `backend.check_index`'s checked mode); "triton" with a C not in `CHANNELS`.
    """
    _check(rows, bitmaps, weight, bias, position_map)
    channels = weight.shape[0]
    tensors = {"rows": rows, "bitmaps": bitmaps, "weight": weight, "bias": bias, "position_map": position_map}
    triton_runs = use_triton("glyph_stem", backend, **tensors)
    if backend == "triton" and channels not in CHANNELS:
        raise ValueError(
            f"glyph_stem: weight has {channels} output channels; the Triton kernels take "
            f"{', '.join(map(str, CHANNELS))}"
        )
    triton_runs = triton_runs and channels in CHANNELS
    dtype = _result_dtype(weight)
    c_runs = backend == "auto" and dtype == torch.float32 and stem_fits_cpu(rows, weight)
    if not triton_runs and not c_runs:
        return glyph_stem_reference(rows, bitmaps, weight, bias, position_map)
    constant = _constant_map(weight, bias, position_map)
    ink_weight = weight[:, 0].flatten(1).T.to(constant.dtype).contiguous()
    if c_runs:
        return glyph_stem_cpu(rows, bitmaps, ink_weight, constant)
    return _glyph_stem(rows.contiguous(), bitmaps.contiguous(), ink_weight, constant, dtype)


def _result_dtype(weight: Tensor) -> torch.dtype:
    return autocast_dtype(weight) or weight.dtype


def _check(rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, position_map: Tensor) -> None:
    if bitmaps.dtype != torch.uint8 or bitmaps.shape[1:] != (PACKED_BYTES,):
        raise ValueError(
            f"glyph_stem: bitmaps is {tuple(bitmaps.shape)} {bitmaps.dtype}; it must be (N, {PACKED_BYTES}) torch.uint8"
        )
    if rows.ndim != 1:
        raise ValueError(f"glyph_stem: rows has shape {tuple(rows.shape)}; it must be (U,)")
    if not weight.is_floating_point() or weight.shape[1:] != (3, 3, 3):
        raise ValueError(
            f"glyph_stem: weight is {tuple(weight.shape)} {weight.dtype}; it must be (C, 3, 3, 3), floating point"
        )
    if bias.shape != weight.shape[:1] or bias.dtype != weight.dtype:
        raise ValueError(
            f"glyph_stem: bias is {tuple(bias.shape)} {bias.dtype}; "
            f"it must be {tuple(weight.shape[:1])} {weight.dtype}, as weight is"
        )
    if not position_map.is_floating_point() or position_map.shape != (2, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"glyph_stem: position_map is {tuple(position_map.shape)} {position_map.dtype}; "
            f"it must be (2, {IMAGE_SIZE}, {IMAGE_SIZE}), floating point"
        )
    check_index("glyph_stem", "rows", rows, bitmaps.shape[0])
