"""Attention with dropout on a CPU, forward and backward, in float32: a sequence at a time.

    context = dropout(softmax(scaling query key^T)) value

PyTorch fuses attention on a CPU only without dropout. With it, each step passes over the scores of the whole batch, and
random numbers cost most of the time (on processors other than Intel's, one thread draws them). Here a sequence goes
through PyTorch's matrix products, its softmax, and the C functions of csrc/attention.c before the next one begins, so
that its scores stay in the second-level cache where they fit (12 heads: up to some 128 tokens). Dropout is that
of the add-norm, drawn again in the backward. A sequence is a row of a batch, or a part of a packed row.

s scores, head size c: 2 s c multiply-adds forward, 4 s c backward. Kept for the backward: query, key, value, and the
probabilities before dropout, 4 s bytes; PyTorch keeps 12 s (before and after dropout, and the mask).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glyphcrm_kernels._shared import buffers, cpu_library
from glyphcrm_kernels._shared.cpu_library import cpu_obstacle
from glyphcrm_kernels._shared.dropout import drop_below, new_seed
from glyphcrm_kernels._shared.operators import operator

SCORES_AT_ONCE = 1 << 17  # of short rows of a batch several are worked on at once, up to so many scores


def obstacle(query: Tensor, key: Tensor, value: Tensor, *settings: object) -> str:
    """Return what keeps the C functions from running, or an empty string."""
    if torch.is_autocast_enabled("cpu"):
        return "the C functions give float32; switch autocast off"
    return cpu_obstacle(query, key, value)


def drawback(query: Tensor, key: Tensor, value: Tensor, scaling: float, p: float, *lengths: object) -> str:
    """Return why PyTorch's own attention is faster, or an empty string."""
    return "" if p else "without dropout PyTorch's attention is fused"


def run(query: Tensor, key: Tensor, value: Tensor, scaling: float, p: float, *lengths: list[int] | None) -> Tensor:
    """Return the context; arguments as in `dropout_attention`."""
    seed = new_seed(query.device)
    context: Tensor = _attention_cpu(query, key, value, seed, drop_below(p), scaling, *lengths)
    return context


class _Scores(NamedTuple):
    """The scores of the sequences that are worked on at once.

    Attributes:
        shape: sequences times heads, queries, keys.
        place: of their first, among the probabilities of all sequences.
        counter: the first that random bits are drawn from.
    """

    shape: tuple[int, int, int]
    place: int
    counter: int

    def of(self, probabilities: Tensor) -> Tensor:
        """Return their part of the probabilities of all sequences."""
        return probabilities.narrow(0, self.place, math.prod(self.shape)).view(self.shape)


def _at_once(query: Tensor, key: Tensor) -> int:
    """Return how many sequences of a batch without `lengths` are worked on at once."""
    return max(1, SCORES_AT_ONCE // max(1, query.shape[1] * query.shape[2] * key.shape[2]))


def _lay_out(
    query: Tensor, key: Tensor, query_lengths: list[int] | None, key_lengths: list[int] | None
) -> list[_Scores]:
    """Return the scores of all sequences, as many a piece as are worked on at once."""
    rows, heads, queries, _ = query.shape
    if query_lengths is not None and key_lengths is not None:
        shapes = [(heads, q, k) for q, k in zip(query_lengths, key_lengths, strict=True)]
    else:
        step = _at_once(query, key)
        shapes = [(min(step, rows - row) * heads, queries, key.shape[2]) for row in range(0, max(rows, 1), step)]
    scores, place, counter = [], 0, 0
    for matrices, q, k in shapes:
        scores.append(_Scores((matrices, q, k), place, counter))
        place += matrices * q * k
        counter += matrices * q * -(-k // 8)
    return scores


def _count(query: Tensor, key: Tensor, query_lengths: list[int] | None, key_lengths: list[int] | None) -> int:
    """Return how many scores all sequences have; in no way that would fix the shapes of a compiled graph."""
    rows, heads, queries, _ = query.shape
    if query_lengths is None or key_lengths is None:
        return rows * heads * queries * key.shape[2]
    return heads * sum(q * k for q, k in zip(query_lengths, key_lengths, strict=True))


def _split(tensor: Tensor, lengths: list[int] | None, at_once: int) -> tuple[Tensor, ...]:
    """Return the pieces ``(sequences, heads, length, c)`` of ``(B, heads, L, c)``, which are worked on at once."""
    return tensor.split(at_once) if lengths is None else tensor.split(lengths, 2)


def _matrices(tensor: Tensor, lengths: list[int] | None, at_once: int) -> Iterator[Tensor]:
    """Yield the same pieces as ``(sequences * heads, length, c)``; of more than one sequence, copies."""
    return (piece.flatten(0, 1) for piece in _split(tensor, lengths, at_once))


def _write(piece: Tensor, matrices: Tensor) -> None:
    piece.copy_(matrices.view(piece.shape))


def _scratch(pieces: list[_Scores], like: Tensor) -> list[Tensor]:
    """Return room for the scores of each piece, the same memory for all."""
    room = buffers.empty(max((math.prod(scores.shape) for scores in pieces), default=0), like=like)
    return [room.narrow(0, 0, math.prod(scores.shape)).view(scores.shape) for scores in pieces]


def _call(name: str, scores: _Scores, drop: int, *arguments: float | Tensor) -> None:
    matrices, queries, keys = scores.shape
    sizes = (matrices * queries, keys, drop, scores.counter)
    cpu_library.call(name, cpu_library.lanes(), torch.get_num_threads(), *sizes, *arguments)


@operator("glyphcrm::attention_cpu", results=1)
def _attention_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seed: Tensor,
    drop: int,
    scaling: float,
    query_lengths: list[int] | None,
    key_lengths: list[int] | None,
) -> tuple[Tensor, Tensor]:
    """Return the context, and the probabilities of all sequences one after the other.

    Args:
        seed: ``(1,)`` int64.
        drop: a probability is dropped if its 16 random bits are below.
        query_lengths, key_lengths: as in `dropout_attention`.
    """
    pieces = _lay_out(query, key, query_lengths, key_lengths)
    rows, heads, queries, c = query.shape
    probabilities = buffers.empty(_count(query, key, query_lengths, key_lengths), like=query)
    context = buffers.empty(rows, queries, heads, c, like=query)
    of_queries, of_keys = (query_lengths, _at_once(query, key)), (key_lengths, _at_once(query, key))
    parts = zip(
        pieces,
        _scratch(pieces, query),
        _split(context.transpose(1, 2), *of_queries),
        _matrices(query, *of_queries),
        _matrices(key, *of_keys),
        _matrices(value, *of_keys),
        strict=True,
    )
    for scores, dropped, out, q, k, v in parts:
        here = scores.of(probabilities)
        torch.baddbmm(here, q, k.transpose(1, 2), beta=0, alpha=scaling, out=here)
        torch.softmax(here, -1, out=here)
        _call("attention_dropout", scores, drop, seed, here, dropped)
        _write(out, torch.bmm(dropped, v))
    return context, probabilities


@_attention_cpu.register_fake
def _(query: Tensor, key: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    rows, heads, queries, c = query.shape
    return query.new_empty(rows, queries, heads, c), query.new_empty(_count(query, key, *others[-2:]))


@operator("glyphcrm::attention_cpu_backward")
def _attention_cpu_backward(
    dcontext: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seed: Tensor,
    probabilities: Tensor,
    drop: int,
    scaling: float,
    query_lengths: list[int] | None,
    key_lengths: list[int] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, in memory as the projections gave these: ``(B, L, heads, c)``."""
    pieces = _lay_out(query, key, query_lengths, key_lengths)
    dquery, dkey, dvalue = (
        buffers.empty(*t.transpose(1, 2).shape, like=t).transpose(1, 2) for t in (query, key, value)
    )
    of_queries, of_keys = (query_lengths, _at_once(query, key)), (key_lengths, _at_once(query, key))
    parts = zip(
        pieces,
        *(_scratch(pieces, query) for _ in range(2)),
        _matrices(dcontext.transpose(1, 2), *of_queries),
        *(_matrices(query, *of_queries), _matrices(key, *of_keys), _matrices(value, *of_keys)),
        *(_split(dquery, *of_queries), _split(dkey, *of_keys), _split(dvalue, *of_keys)),
        strict=True,
    )
    for scores, dscores, dropped, dout, q, k, v, dq, dk, dv in parts:
        torch.bmm(dout, v.transpose(1, 2), out=dscores)  # the gradient of `dropped`, for now
        _call("attention_dropout_backward", scores, drop, scaling, seed, scores.of(probabilities), dscores, dropped)
        _write(dv, torch.bmm(dropped.transpose(1, 2), dout))
        _write(dq, torch.bmm(dscores, k))
        _write(dk, torch.bmm(dscores.transpose(1, 2), q))
    return dquery, dkey, dvalue


@_attention_cpu_backward.register_fake
def _(dcontext: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    dquery, dkey, dvalue = (t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in inputs[:3])
    return dquery, dkey, dvalue


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, seed, *ctx.settings = inputs
    _, probabilities = output
    ctx.save_for_backward(query, key, value, seed, probabilities)
    ctx.mark_non_differentiable(probabilities)
    ctx.set_materialize_grads(False)  # or zeros would be made as the probabilities' gradient


def _backward(ctx: Any, dcontext: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dcontext is None:  # nothing that is differentiated depends on the context
        return (None,) * 8
    gradients = _attention_cpu_backward(dcontext, *ctx.saved_tensors, *ctx.settings)
    return *gradients, None, None, None, None, None


_attention_cpu.register_autograd(_backward, setup_context=_setup_context)
