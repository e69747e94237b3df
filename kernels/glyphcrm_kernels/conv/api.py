"""Glyph convolution: meaning, checks, and which implementation runs."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from glyphcrm_kernels._shared.checks import autocast_dtype, check_devices
from glyphcrm_kernels._shared.dispatch import Implementation, Op
from glyphcrm_kernels._shared.gpus import hopper_obstacle, on_no_gpu
from glyphcrm_kernels.conv import cpu, hopper_tiles, record, triton, triton_kernels
from glyphcrm_kernels.conv.reference import glyph_conv_reference, output_shape


def glyph_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
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
        bias: ``(K,)``, or None for zeros.
        residual: ``(U, K, H', W')``, added before the ReLU.
        relu: whether to clamp at zero.
        pool: whether to max-pool 2x2 with stride 2; the kernels need even H' and W'.
        padding: zeros around `x`, in pixels, less than k.
        backend: "auto", "hopper" (kernels for compute capability 9.0, where they cover the sizes, else Triton's),
            "triton", "cpu" (C in the Fourier domain for large filters, else PyTorch's own sum; float32) or "reference".

    Returns:
        ``(U, K, H', W')`` with ``H' = H + 2 padding - k + 1``, halved by `pool`, in the dtype of x and
        channels-last memory order (under `torch.func` and `torch.export` in PyTorch's).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an unknown backend, or a named one that does not take
            the arguments.
    """
    return OP.run(backend, *_arguments(x, weight, bias, residual, relu, pool, padding))


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> tuple[Any, ...]:
    """Return the arguments of the implementations: as in `glyph_conv_reference`, cast as autocast would."""
    if bias is None:
        bias = weight.new_zeros(weight.shape[:1])
    narrow = autocast_dtype(x)
    if narrow is not None and x.is_floating_point():
        x, weight = x.to(narrow), weight.to(narrow)
        residual = residual if residual is None else residual.to(narrow)
    return x, weight, bias, residual, relu, pool, padding


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> None:
    _check_shapes(x, weight, bias, residual, pool, padding)
    for name, dtype in (("x", x.dtype), ("bias", bias.dtype)):
        if not dtype.is_floating_point:
            raise ValueError(f"glyph_conv: {name} is {dtype}; it must be floating point")
    for name, tensor in (("weight", weight), ("residual", residual)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"glyph_conv: {name} is {tensor.dtype}, but x is {x.dtype}; give them one dtype")
    check_devices("glyph_conv", {"x": x, "weight": weight, "bias": bias, "residual": residual})


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
    images, _, height, width = output_shape(x, weight, False, padding)
    if min(height, width) < (2 if pool else 1):
        raise ValueError(f"glyph_conv: x has {x.shape[2]}x{x.shape[3]} pixels, too few for this {size}x{size} filter")
    if residual is not None and residual.shape != (images, outputs, height, width):
        expected = (images, outputs, height, width)
        raise ValueError(f"glyph_conv: residual has shape {tuple(residual.shape)}; the convolution gives {expected}")


def _hopper_obstacle(x: Tensor, *others: Any) -> str:
    return hopper_obstacle(x) or triton.obstacle(x, *others)


def _hopper_drawback(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, pool: bool, padding: int
) -> str:
    return on_no_gpu(x) or hopper_tiles.uncovered(x.shape, x.dtype, weight.shape, pool, padding) or record.drawback(x)


OP = Op(
    "glyph_conv",
    glyph_conv,
    _arguments,
    _check,
    {
        "hopper": Implementation(
            functools.partial(triton.run, on_hopper=True), _hopper_obstacle, drawback=_hopper_drawback
        ),
        "triton": Implementation(triton.run, triton.obstacle, drawback=on_no_gpu),
        "cpu": Implementation(cpu.run, cpu.obstacle, drawback=cpu.drawback),
        "reference": Implementation(glyph_conv_reference),
    },
    triton_kernels,
)
