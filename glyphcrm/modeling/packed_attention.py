"""Attention inside each sequence of a packed row: four ways, and which runs where.

| way         | runs on                                     | why there                                                |
|-------------|---------------------------------------------|----------------------------------------------------------|
| `flash`     | NVIDIA from Ampere on, float16 and bfloat16 | PyTorch's FlashAttention with lengths; takes dropout     |
| `efficient` | NVIDIA, eager; float32, old GPUs' float16   | PyTorch's memory-efficient attention, likewise           |
| `sequences` | a CPU, eager                                | the host knows the lengths: one sequence after the other |
| `masked`    | everything else                             | a mask of (queries, keys): right anywhere, T x T work    |

None of them makes the host wait for a device, and none but `sequences` looks at values, so that the others can be
captured in a CUDA graph. Every token belongs to a sequence, and so is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from glyphcrm_kernels import dropout_attention
from torch import Tensor

AMPERE = (8, 0)
LARGEST_HEAD = 256  # of FlashAttention
HEAD_MULTIPLE = 8  # of both fused kernels


class Sequences(NamedTuple):
    """Where the S sequences of a packed row stand, as PyTorch's functions and transformers' name and order it.

    Attributes:
        cu_seq_lens_q: ``(S + 1,)`` int32, where each starts among the queries, and at the end how many these are.
        cu_seq_lens_k: the same among keys and values.
        max_length_q: no sequence has more queries.
        max_length_k: no sequence has more keys.
    """

    cu_seq_lens_q: Tensor
    cu_seq_lens_k: Tensor
    max_length_q: int
    max_length_k: int


def sequence_numbers(cu_seq_lens: Tensor, count: int) -> Tensor:
    """Return for each of the `count` places of a row the number of its sequence, ``(count,)`` int64."""
    places = torch.arange(count, dtype=cu_seq_lens.dtype, device=cu_seq_lens.device)
    return torch.searchsorted(cu_seq_lens, places, right=True) - 1


def attend_in_sequences(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, p: float, backend: str
) -> Tensor:
    """Return ``dropout(softmax(scaling query key^T)) value`` inside each sequence, ``(1, Q, heads, c)``.

    `query` is ``(1, heads, Q, c)``, `key` and `value` ``(1, heads, K, c)``; `p` is the probability of dropout,
    `backend` that of `dropout_attention`.
    """
    way = WAYS[packed_way(query.device, query.dtype, query.shape[-1])]
    return way(query, key, value, sequences, scaling, p, backend)


def packed_way(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """Return the way in `WAYS` for queries on a device, of a dtype and with so many numbers a head."""
    if device.type == "cpu":
        return "masked" if is_traced() else "sequences"
    if device.type != "cuda" or torch.version.hip or head_size % HEAD_MULTIPLE:
        return "masked"
    is_new = _capability(device.index) >= AMPERE
    if is_new and dtype in (torch.float16, torch.bfloat16) and head_size <= LARGEST_HEAD:
        return "flash"
    is_taken = dtype in (torch.float32, torch.float16) or (is_new and dtype == torch.bfloat16)
    # PyTorch describes the backward of the memory-efficient one to compilers with one argument too few.
    return "efficient" if is_taken and not is_traced() else "masked"


def is_traced() -> bool:
    """Return whether a graph is being made, which must not depend on the values of this batch."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@torch.compiler.assume_constant_result
@functools.cache
def _capability(device_index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, p: float, backend: str
) -> Tensor:
    # `torch.nn.attention.varlen` is this operator without dropout, behind one more.
    q, k, v = (tensor.transpose(1, 2).squeeze(0) for tensor in (query, key, value))
    context = torch.ops.aten._flash_attention_forward(q, k, v, *sequences, p, False, False, scale=scaling)[0]
    return context.unsqueeze(0)


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, p: float, backend: str
) -> Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    for_backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v))
    # Its backward refuses largest lengths beyond those of the row, as a short row has.
    longest = (min(n, tensor.shape[1]) for n, tensor in zip(sequences[2:], (q, k), strict=True))
    forward = torch.ops.aten._efficient_attention_forward
    return forward(q, k, v, None, *sequences[:2], *longest, p, 0, for_backward, scale=scaling)[0]


def _by_sequence(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, p: float, backend: str
) -> Tensor:
    asked, read = (ends.diff().tolist() for ends in sequences[:2])
    return dropout_attention(
        query, key, value, scaling=scaling, p=p, query_lengths=asked, key_lengths=read, backend=backend
    )


def _masked(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, p: float, backend: str
) -> Tensor:
    asking, read = (
        sequence_numbers(ends, tensor.shape[2]) for ends, tensor in zip(sequences[:2], (query, key), strict=True)
    )
    same = asking.unsqueeze(1) == read
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=same, dropout_p=p, scale=scaling)
    return context.transpose(1, 2)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, Sequences, float, float, str], Tensor]] = {
    "flash": _flash,
    "efficient": _efficient,
    "sequences": _by_sequence,
    "masked": _masked,
}
