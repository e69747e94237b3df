"""Add-norm on a CPU, forward and backward, in float32: one pass over memory each way.

The operator of triton.py with the same bytes moved and the same dropout: Philox4x32-7 of seed, row and column, so
that one seed gives one mask on a CPU and on a GPU. PyTorch's own dropout draws its random numbers in
one thread on processors other than Intel's, and each of its operations passes over memory again. The C functions are
in csrc/add_norm.c.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glyphcrm_kernels._shared import buffers, cpu_library
from glyphcrm_kernels._shared.checks import index_error
from glyphcrm_kernels._shared.cpu_library import BadIndexError, cpu_obstacle
from glyphcrm_kernels._shared.dropout import drop_below, new_seed
from glyphcrm_kernels._shared.operators import operator

Tensors = tuple[Tensor, Tensor, Tensor]


def obstacle(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, *settings: object) -> str:
    """Return what keeps the C functions from running, or an empty string."""
    return cpu_obstacle(x, residual, weight, bias, skip, channels=(x.shape[-1],))


def run(x: Tensor, *inputs: Any) -> Tensor:
    """Return y; arguments as in `add_norm_reference`."""
    *others, index, p, eps = inputs
    index, seed = None if index is None else index.long(), new_seed(x.device) if p else None
    y: Tensor = _add_norm_cpu(x, *others, index, seed, drop_below(p), eps)
    return y


def _call(
    name: str, drop: int, x: Tensor, skip: Tensor | None, index: Tensor | None, *arguments: float | Tensor | None
) -> None:
    d = x.shape[-1]
    rows = 0 if skip is None else skip.shape[0]
    sizes = (cpu_library.lanes(d), torch.get_num_threads(), x.numel() // d, d, rows, drop)
    skip, index = (t if t is None else t.contiguous() for t in (skip, index))
    try:
        cpu_library.call(name, *sizes, x.contiguous(), skip, index, *arguments)
    except BadIndexError:
        assert index is not None
        raise index_error("add_norm", "index", index, rows) from None


@operator("glyphcrm::add_norm_cpu", results=1)
def _add_norm_cpu(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    drop: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y ``(..., d)``, and mean and rstd ``(...)`` of the sum that was normalised.

    Args:
        x, residual, weight, bias, skip, index, eps: as in `add_norm`; float32, the index int64.
        seed: ``(1,)`` int64, or None without dropout.
        drop: an element of x is dropped if its 16 random bits are below.
    """
    y = buffers.empty(*x.shape, like=x)
    mean, rstd = (buffers.empty(*x.shape[:-1], like=x) for _ in range(2))
    inputs = (residual.contiguous(), weight.contiguous(), bias.contiguous(), seed, eps)
    _call("add_norm_forward", drop, x, skip, index, *inputs, y, mean, rstd)
    return y, mean, rstd


@_add_norm_cpu.register_fake
def _(x: Tensor, *_: Any) -> Tensors:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1]), x.new_empty(x.shape[:-1])


@operator("glyphcrm::add_norm_cpu_backward")
def _add_norm_cpu_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    skip: Tensor | None,
    index: Tensor | None,
    seed: Tensor | None,
    drop: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dz, dx (empty where dz serves), and dweight and dbias as ``(2, d)``."""
    dz = buffers.empty(*x.shape, like=x)
    dx = None if seed is None else buffers.empty(*x.shape, like=x)
    dparameters = buffers.empty(2, x.shape[-1], like=x)
    inputs = (t.contiguous() for t in (residual, weight, mean, rstd, dy))
    _call("add_norm_backward", drop, x, skip, index, *inputs, seed, dz, dx, dparameters)
    return dz, x.new_empty(0) if dx is None else dx, dparameters


@_add_norm_cpu_backward.register_fake
def _(dy: Tensor, x: Tensor, *others: Any) -> Tensors:
    seed = others[6]
    return x.new_empty(x.shape), x.new_empty(0 if seed is None else x.shape), x.new_empty(2, x.shape[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    x, residual, weight, _, skip, index, seed, ctx.drop, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, residual, weight, mean, rstd, skip, index, seed)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # or zeros would be made as the gradients of mean and rstd


def _backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:  # nothing that is differentiated depends on y
        return (None,) * 9
    saved = ctx.saved_tensors  # once: checkpointing makes them when they are asked for
    *_, skip, index, seed = saved
    dz, dx, dparameters = _add_norm_cpu_backward(dy, *saved, ctx.drop)
    dskip = None
    if skip is not None and ctx.needs_input_grad[4]:
        dskip = torch.ops.aten.embedding_dense_backward(dz, index, skip.shape[0], -1, False)
    return dz if seed is None else dx, dz, *dparameters, dskip, None, None, None, None


_add_norm_cpu.register_autograd(_backward, setup_context=_setup_context)
