"""Add-norm: meaning, checks, and which implementation runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from glyphcrm_kernels._shared.checks import check_devices, check_index_dtype
from glyphcrm_kernels._shared.dispatch import Implementation, Op
from glyphcrm_kernels._shared.gpus import on_no_gpu
from glyphcrm_kernels.addnorm import cpu, triton, triton_kernels
from glyphcrm_kernels.addnorm.reference import add_norm_reference


def add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    skip: Tensor | None = None,
    index: Tensor | None = None,
    p: float = 0.0,
    eps: float = 1e-12,
    training: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Return ``LayerNorm(dropout(x) + residual + skip[index])``.

    With `skip` this is the three-way add-norm that ends GlyphCRM's first two blocks (FFN output,
    attention output, glyph); without, it is BERT's. Dropout falls on `x` alone; the kernels round its
    probability to a multiple of 1/65,536.

    Args:
        x: ``(..., d)``, the output of a sub-layer.
        residual: ``(..., d)``, what went into that sub-layer.
        weight: ``(d,)``, the gain of the normalisation.
        bias: ``(d,)``, its shift.
        skip: ``(rows, d)``, one row for each distinct character; given together with `index`.
        index: ``(...)`` int64 or int32, for each token its row in `skip`.
        p: dropout probability in [0, 1), used when `training`.
        eps: added to the variance.
        training: whether dropout is on.
        backend: "auto", "triton", "cpu" (C, float32, d a multiple of 4) or "reference".

    Returns:
        ``(..., d)`` in the dtype to which PyTorch promotes those of `x` and `residual`, under autocast,
        too. The sum is normalised in float32 (float64 if that is the dtype), each gradient has the dtype of its input.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, `skip` without `index` or the other way round, an index
            out of range (on a GPU: see `check_index`), `p` outside [0, 1), `eps` below 0, an unknown backend, or a
            named one that does not take the arguments.
    """
    return OP.run(backend, *_arguments(x, residual, weight, bias, skip, index, p, eps, training))


def _arguments(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    p: float,
    eps: float,
    training: bool,
) -> tuple[Any, ...]:
    """Return the arguments of the implementations: as in `add_norm_reference`."""
    if not 0 <= p < 1:
        raise ValueError(f"add_norm: p={p} must be in [0, 1)")
    return x, residual, weight, bias, skip, index, float(p) if training else 0.0, float(eps)


def _check(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    p: float,
    eps: float,
) -> None:
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias, "skip": skip, "index": index}
    d = x.shape[-1] if x.dim() else 0
    for name, tensor in tensors.items():
        if tensor is not None and name != "index" and not tensor.is_floating_point():
            raise ValueError(f"add_norm: {name} is {tensor.dtype}; it must be floating point")
    if not d:
        raise ValueError(f"add_norm: x has shape {tuple(x.shape)}; it must be (..., d) with d at least 1")
    if residual.shape != x.shape:
        raise ValueError(f"add_norm: residual has shape {tuple(residual.shape)}; x has {tuple(x.shape)}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector.shape != (d,):
            raise ValueError(f"add_norm: {name} has shape {tuple(vector.shape)}; it must be ({d},)")
    if eps < 0:
        raise ValueError(f"add_norm: eps={eps} must be 0 or more")
    if skip is not None and index is not None:
        if skip.dim() != 2 or skip.shape[1] != d:
            raise ValueError(f"add_norm: skip has shape {tuple(skip.shape)}; it must be (rows, {d})")
        if index.shape != x.shape[:-1]:
            raise ValueError(f"add_norm: index has shape {tuple(index.shape)}; it must be {tuple(x.shape[:-1])}")
        check_index_dtype("add_norm", "index", index)
    elif skip is not None or index is not None:
        missing = "index" if index is None else "skip"
        raise ValueError(f"add_norm: {missing} is missing; skip and index go together, give both or neither")
    check_devices("add_norm", tensors)


OP = Op(
    "add_norm",
    add_norm,
    _arguments,
    _check,
    {
        "triton": Implementation(triton.run, triton.obstacle, drawback=on_no_gpu),
        "cpu": Implementation(cpu.run, cpu.obstacle),
        "reference": Implementation(add_norm_reference),
    },
    triton_kernels,
)
