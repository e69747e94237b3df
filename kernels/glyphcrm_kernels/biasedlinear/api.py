"""The linear layer: meaning, checks, and which implementation runs."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels._shared.checks import check_devices
from glyphcrm_kernels._shared.dispatch import Implementation, Op
from glyphcrm_kernels._shared.gpus import on_no_gpu
from glyphcrm_kernels.biasedlinear import triton, triton_kernels


def biased_linear(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """Return ``x @ weight.T + bias``, as `torch.nn.functional.linear` does; the gradient of the bias is a kernel's.

    Args:
        x: ``(..., n)``.
        weight: ``(d, n)``.
        bias: ``(d,)``.
        backend: "auto", "triton" or "reference" (PyTorch alone). Triton is for eager calls: a compiler fuses the sum
            into what comes before it.

    Returns:
        ``(..., d)`` in PyTorch's dtype for it, under autocast, too. The kernel adds the gradient of the bias up in
        float32 and gives it in the dtype of `bias`; all else is PyTorch's. The result is a view: it cannot be changed
        in place.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an unknown backend, or a named one that does not take
            the arguments.
    """
    return OP.run(backend, *_arguments(x, weight, bias))


def _arguments(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
    """Return the arguments of the implementations: as in `torch.nn.functional.linear`."""
    return x, weight, bias


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    tensors = {"x": x, "weight": weight, "bias": bias}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"biased_linear: {name} is {tensor.dtype}; it must be floating point")
    if weight.dim() != 2 or not weight.shape[0]:
        raise ValueError(f"biased_linear: weight has shape {tuple(weight.shape)}; it must be (d, n) with d at least 1")
    d, n = weight.shape
    if not x.dim() or x.shape[-1] != n:
        raise ValueError(f"biased_linear: x has shape {tuple(x.shape)}; it must be (..., {n})")
    if bias.shape != (d,):
        raise ValueError(f"biased_linear: bias has shape {tuple(bias.shape)}; it must be ({d},)")
    check_devices("biased_linear", tensors)


OP = Op(
    "biased_linear",
    biased_linear,
    _arguments,
    _check,
    {
        "triton": Implementation(triton.run, triton.obstacle, drawback=on_no_gpu),
        "reference": Implementation(F.linear),
    },
    kernels=triton_kernels,
)
