"""Attention with dropout: meaning, checks, and which implementation runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from glyphcrm_kernels._shared.checks import check_devices
from glyphcrm_kernels._shared.dispatch import Implementation, Op
from glyphcrm_kernels.attention import cpu
from glyphcrm_kernels.attention.reference import dropout_attention_reference


def dropout_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    p: float,
    query_lengths: list[int] | None = None,
    key_lengths: list[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``dropout(softmax(scaling query key^T)) value`` as ``(B, Q, heads, c)``.

    Args:
        query: ``(B, heads, Q, c)``.
        key: ``(B, heads, K, c)``, and so is `value`.
        scaling: of the scores.
        p: dropout probability in [0, 1); the C functions round it to a multiple of 1/65,536.
        query_lengths: where B = 1 and the row holds several sequences, each of which attends to itself: their queries.
        key_lengths: their keys; given together with `query_lengths`.
        backend: "auto", "cpu" (C, float32, without autocast) or "reference" (PyTorch's
            `scaled_dot_product_attention`, sequence by sequence); "auto" takes C where there is dropout.

    Raises:
        ValueError: `p` outside [0, 1), shapes, dtypes or devices that do not fit, lengths that are not those of the
            row, an unknown backend, or a named one that does not take the arguments.
    """
    return OP.run(backend, *_arguments(query, key, value, scaling, p, query_lengths, key_lengths))


def _arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    p: float,
    query_lengths: list[int] | None,
    key_lengths: list[int] | None,
) -> tuple[Any, ...]:
    """Return the arguments of the implementations."""
    return query, key, value, float(scaling), float(p), query_lengths, key_lengths


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    p: float,
    query_lengths: list[int] | None,
    key_lengths: list[int] | None,
) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"dropout_attention: p={p} must be in [0, 1)")
    if query.dim() != 4:
        raise ValueError(f"dropout_attention: query has shape {tuple(query.shape)}; it must be (B, heads, Q, c)")
    expected = (*query.shape[:2], key.shape[2] if key.dim() == 4 else "K", query.shape[3])
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise ValueError(
                f"dropout_attention: {name} is {tensor.dtype}, but query is {query.dtype}; give them one dtype"
            )
        if tensor.shape != expected:
            raise ValueError(f"dropout_attention: {name} has shape {tuple(tensor.shape)}; it must be {expected}")
    if (query_lengths is None) != (key_lengths is None):
        raise ValueError("dropout_attention: give query_lengths and key_lengths, or neither")
    if query_lengths is not None and key_lengths is not None and len(query_lengths) != len(key_lengths):
        counts = f"{len(query_lengths)} query_lengths and {len(key_lengths)} key_lengths"
        raise ValueError(f"dropout_attention: {counts}; give each sequence one of both")
    for tensor, lengths in ((query, query_lengths), (key, key_lengths)):
        if lengths is not None and (len(tensor) != 1 or sum(lengths) != tensor.shape[2]):
            total, shape = sum(lengths), tuple(tensor.shape)
            raise ValueError(f"dropout_attention: lengths of {total} in all do not divide a row of shape {shape}")
    check_devices("dropout_attention", {"query": query, "key": key, "value": value})


OP = Op(
    "dropout_attention",
    dropout_attention,
    _arguments,
    _check,
    {
        "cpu": Implementation(cpu.run, cpu.obstacle, drawback=cpu.drawback),
        "reference": Implementation(dropout_attention_reference),
    },
)
