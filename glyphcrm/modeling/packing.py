"""Padding costs no work: the tokens of a padded batch as one row, and attention inside each sequence of that row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.generic import is_flash_attention_requested


@dataclass(frozen=True)
class Packing:
    """Where the T tokens of a padded batch stand; S of its sequences have any."""

    shape: tuple[int, int]  # B and L of the padded batch
    places: Tensor  # (T,) int64, rising: each token's place in the flattened batch
    boundaries: Tensor  # (S + 1,) int32: where in the packed row each sequence starts, and T
    longest: int  # tokens of the longest sequence

    def pack(self, padded: Tensor | None) -> Tensor | None:
        """Return the tokens' part ``(1, T, ...)`` of what is or broadcasts to ``(B, L, ...)``; None of None."""
        if padded is None:
            return None
        return padded.expand(*self.shape, *padded.shape[2:]).flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return ``(B, L, d)`` with the rows of `packed` ``(1, T, d)`` in their places, and zeros at padding."""
        rows, length = self.shape
        padded = packed.new_zeros(rows * length, packed.shape[-1])
        return padded.index_copy(0, self.places, packed.squeeze(0)).view(rows, length, -1)

    def positions(self) -> Tensor:
        """Return ``(1, T)`` int64: each token's position in its padded sequence."""
        return (self.places % self.shape[1]).unsqueeze(0)

    def first_tokens(self) -> tuple[Tensor, Packing]:
        """Return where the first token of each sequence stands in the packed row, ``(1, S)``, and their own packing."""
        starts = self.boundaries[:-1].long()
        each = torch.arange(len(self.boundaries), dtype=torch.int32, device=starts.device)
        return starts.unsqueeze(0), Packing((self.shape[0], 1), self.places[starts] // self.shape[1], each, 1)

    def attention_arguments(self, queries: Packing) -> dict[str, Any]:
        """Return what transformers' attention functions take for rows without padding, self being that of the keys."""
        return {
            "cu_seq_lens_q": queries.boundaries,
            "cu_seq_lens_k": self.boundaries,
            "max_length_q": queries.longest,
            "max_length_k": self.longest,
        }


def find_packing(attention_mask: Tensor | None, tokens: Tensor, config: PreTrainedConfig) -> Packing | None:
    """Return how to pack a batch, or None where it is read as it is.

    It is packed where some but not all of its places are padding, and lengths can be had. On a CPU they are at hand. On
    a GPU the host has to wait for them, which FlashAttention with padding does in every block, and so once instead,
    but `sdpa` never does. Eager and flex attention take no lengths, and a graph that is compiled, exported or traced
    must not depend on them.

    Args:
        attention_mask: ``(B, L)``, 0 for padding; a mask of any other shape is not looked into.
        tokens: ``(B, L, ...)``, anything with the shape and on the device of the batch.
    """
    if attention_mask is None or attention_mask.shape != tokens.shape[:2]:
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    host_knows = config._attn_implementation == "sdpa" and tokens.device.type == "cpu"
    if not host_knows and not is_flash_attention_requested(config):
        return None
    real = attention_mask.to(tokens.device) != 0
    places = real.flatten().nonzero().squeeze(1)
    if len(places) in (0, real.numel()):
        return None
    lengths = real.sum(1, dtype=torch.int32)
    lengths = lengths[lengths > 0]
    boundaries = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return Packing((real.shape[0], real.shape[1]), places, boundaries, int(lengths.max()))


def first_positions(attention_mask: Tensor | None, rows: Tensor) -> Tensor:
    """Return where in each padded sequence its first token stands, ``(B, 1)`` int64; `rows` ``(B, ...)`` is any tensor.

    It is at 0 unless there is an `attention_mask` ``(B, L)``.
    """
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.zeros(len(rows), 1, dtype=torch.int64, device=rows.device)
    return (attention_mask != 0).int().argmax(1, keepdim=True).to(rows.device)


def only_first(
    attention_mask: Tensor | None, mask: Any, packing: Packing | None, states: Tensor
) -> tuple[Tensor | None, Any, Packing | None, dict[str, Any]]:
    """Return what makes a block compute the first tokens alone: their positions, mask, packing and attention arguments.

    The positions are None where a block computes all tokens or none, under the mask of flex attention. `mask` is what
    transformers has made of `attention_mask`, or None with a packing; states are ``(B, L, d)``, packed ``(1, T, d)``.
    """
    if packing is not None:
        positions, firsts = packing.first_tokens()
        return positions, None, firsts, packing.attention_arguments(firsts)
    if not (mask is None or isinstance(mask, Tensor)):
        return None, mask, None, {}
    # All tokens have the same padding, and the mask of a caller is that of position 0.
    mask = mask[:, :, :1] if mask is not None and mask.dim() == 4 else mask
    return first_positions(attention_mask, states), mask, None, {}


def first_states(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return of states ``(B, L, d)`` those of [CLS], ``(B, d)``: of the first tokens, wherever the padding stands."""
    return hidden_states.take_along_dim(first_positions(attention_mask, hidden_states).unsqueeze(2), 1)[:, 0]
