"""Padding costs no work: the tokens of a padded batch as one row, and attention inside each sequence of that row."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.generic import is_flash_attention_requested

from glyphcrm.modeling.packed_attention import Sequences, is_traced, packed_way


@dataclass(frozen=True)
class Packing:
    """Where the T tokens of a padded batch stand, and the S sequences of the row that they make."""

    shape: tuple[int, int]  # B and L of the padded batch
    places: Tensor  # (T,) int64, rising: each token's place in the flattened batch
    boundaries: Tensor  # (S + 1,) int32: where in the packed row each sequence starts, and T
    longest: int  # no sequence has more tokens

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
        return Sequences(queries.boundaries, self.boundaries, queries.longest, self.longest)._asdict()


def find_packing(
    attention_mask: Tensor | None,
    tokens: Tensor,
    config: PreTrainedConfig,
    token_index: Tensor | None = None,
    may_wait: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Packing | None:
    """Return how to pack a batch, or None where it is read as it is.

    It is packed where attention inside sequences is fused and the host knows how many tokens there are: from
    `token_index`, or else by a look at the mask, for which a GPU is waited for. FlashAttention with padding does that
    in every block, and so once instead. Without any padding, a batch on a CPU is read as it is. Eager and flex
    attention take no lengths; a graph that is compiled, exported or traced must not depend on them, but may on the
    shape of `token_index`.

    Args:
        attention_mask: ``(B, L)``, 0 for padding; a mask of any other shape is not looked into.
        tokens: ``(B, L, ...)``, anything with the shape and on the device of the batch.
        token_index: ``(T,)`` int64, rising: where the flattened mask is not 0, at least once in each row.
        may_wait: whether it matters little if a GPU is waited for, since it is anyway.
        dtype: of queries and keys.
    """
    if attention_mask is None or attention_mask.shape != tokens.shape[:2]:
        return None
    if not is_fused_in_sequences(tokens.device, dtype, config):
        return None
    is_flash = is_flash_attention_requested(config)
    at_hand = is_at_hand(tokens.device)
    if at_hand or token_index is None:
        token_index = None  # the mask is as good
        is_known = at_hand or is_flash or (may_wait and not _is_captured(tokens.device))
        if is_traced() or not is_known:
            return None
    real = attention_mask.to(tokens.device) != 0
    places = real.flatten().nonzero().squeeze(1) if token_index is None else token_index.to(tokens.device)
    if len(places) == 0 or (at_hand and len(places) == real.numel()):
        return None
    lengths = real.sum(1, dtype=torch.int32)
    longest = real.shape[1]
    if token_index is None:
        lengths = lengths[lengths > 0]
        longest = int(lengths.max())
    boundaries = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return Packing((real.shape[0], real.shape[1]), places, boundaries, longest)


def is_at_hand(device: torch.device) -> bool:
    """Return whether the host can read values on `device` without waiting for it."""
    return device.type == "cpu"


def is_fused_in_sequences(device: torch.device, dtype: torch.dtype, config: PreTrainedConfig) -> bool:
    """Return whether a model attends inside the sequences of a row without the work of all its pairs of tokens."""
    head_size = config.hidden_size // config.num_attention_heads
    is_ours = config._attn_implementation == "sdpa"
    return is_flash_attention_requested(config) or (is_ours and packed_way(device, dtype, head_size) != "masked")


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def row_of_sequences(
    shape: tuple[int, int],
    most_positions: int,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
) -> Sequences:
    """Return the sequences of a row that a caller has packed, ``(1, T)``, from transformers' arguments.

    `cu_seq_lens_k` are those of the queries, and no sequence may be longer than `most_positions`, which is also the
    default of the largest length. Raises `ValueError` for what does not fit; values are checked on the CPU alone.
    """
    if shape[0] != 1:
        raise ValueError(f"cu_seq_lens_q divides a packed row, but the batch has shape {shape}; it must be (1, length)")
    if cu_seq_lens_q.dim() != 1 or len(cu_seq_lens_q) < 2 or cu_seq_lens_q.is_floating_point():
        found = f"{tuple(cu_seq_lens_q.shape)} {cu_seq_lens_q.dtype}"
        raise ValueError(f"cu_seq_lens_q is {found}; it must be (sequences + 1,) integers")
    for name, length in (("max_length_q", max_length_q), ("max_length_k", max_length_k)):
        if length is not None and not 0 < length <= most_positions:
            raise ValueError(f"{name}={length} must be from 1 to the model's {most_positions} positions")
    longest = max(max_length_q or 0, max_length_k or 0) or min(shape[1], most_positions)
    if is_at_hand(cu_seq_lens_q.device) and not is_traced():
        _check_boundaries(cu_seq_lens_q, cu_seq_lens_k, shape[1], longest, most_positions)
    boundaries = cu_seq_lens_q.int().contiguous()
    return Sequences(boundaries, boundaries, longest, longest)


def _check_boundaries(boundaries: Tensor, of_keys: Tensor | None, length: int, longest: int, most: int) -> None:
    found = boundaries.tolist()
    lengths = [end - start for start, end in itertools.pairwise(found)]
    if found[0] != 0 or found[-1] != length or min(lengths) < 0:
        raise ValueError(
            f"cu_seq_lens_q goes from {found[0]} to {found[-1]}; it must rise from 0 to the row's {length} tokens"
        )
    if of_keys is not None and of_keys.tolist() != found:
        raise ValueError("cu_seq_lens_k differs from cu_seq_lens_q; give the same, or cu_seq_lens_q alone")
    if max(lengths) > longest:
        remedy = "truncate it" if longest == most else "give the largest length as max_length_q"
        raise ValueError(f"a sequence of the packed row has {max(lengths)} tokens, more than {longest}; {remedy}")


def first_positions(attention_mask: Tensor | None, rows: Tensor) -> Tensor:
    """Return where in each padded sequence its first token stands, ``(B, 1)`` int64; `rows` ``(B, ...)`` is any tensor.

    It is at 0 unless there is an `attention_mask` ``(B, L)``.
    """
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.zeros(rows.shape[0], 1, dtype=torch.int64, device=rows.device)
    return (attention_mask != 0).int().argmax(1, keepdim=True).to(rows.device)


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """Return of states ``(B, L, d)`` those at positions ``(B, Q)``, ``(B, Q, d)``."""
    # `take_along_dim` would fix the sizes of an exported graph.
    return states.gather(1, positions.unsqueeze(2).expand(-1, -1, states.shape[2]))


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


def first_states(hidden_states: Tensor, attention_mask: Tensor | None, cu_seq_lens: Tensor | None = None) -> Tensor:
    """Return of states ``(B, L, d)`` those of [CLS], ``(B, d)``: of the first tokens, wherever the padding stands.

    Of a packed row ``(1, T, d)`` these are ``(S, d)``, where `cu_seq_lens` ``(S + 1,)`` says that sequences start; an
    empty sequence at the end has the state of the last token.
    """
    if cu_seq_lens is not None:
        starts = cu_seq_lens[:-1].long().clamp(max=hidden_states.shape[1] - 1)
        return hidden_states[0].index_select(0, starts)
    return at_positions(hidden_states, first_positions(attention_mask, hidden_states))[:, 0]
