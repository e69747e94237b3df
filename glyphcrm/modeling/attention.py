"""Self-attention, and its implementations in the form of transformers' attention interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from glyphcrm_kernels.attention_cpu import attention_cpu, attention_fits_cpu
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.modeling.kernel_backend import kernel_backend


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Softmax attention in plain PyTorch, in the form of transformers' attention interface."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


def packed_sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention inside each sequence of a packed row, by PyTorch, in the form of transformers' attention interface.

    Args:
        module: not used.
        query: ``(1, heads, Q, head size)``.
        key: ``(1, heads, T, head size)``, and so is `value`.
        attention_mask: not used: there is no padding.
        cu_seq_lens_q: ``(S + 1,)``: where each sequence starts among the queries, and Q.
        cu_seq_lens_k: the same among the keys, and T.

    Returns:
        ``(1, Q, heads, head size)``.
    """
    asked, read = cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist()
    # One `split`, whose backward is one `cat`; slices would each make a gradient of the whole row.
    parts = zip(query.split(asked, 2), key.split(read, 2), value.split(read, 2), strict=True)
    contexts = [F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling) for q, k, v in parts]
    return torch.cat([context.transpose(1, 2) for context in contexts], 1), None


def cpu_dropout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return the context ``(B, Q, heads, head size)``.

    Args:
        module: not used.
        query: ``(B, heads, Q, head size)``.
        key: ``(B, heads, T, head size)``, and so is `value`.
        attention_mask: not used: there must be no padding.
        cu_seq_lens_q, cu_seq_lens_k: of a packed row, as in `packed_sdpa_attention`.
    """
    asked, read = (None if ends is None else ends.diff().tolist() for ends in (cu_seq_lens_q, cu_seq_lens_k))
    lengths = {"query_lengths": asked, "key_lengths": read}
    return attention_cpu(query, key, value, scaling=scaling, p=dropout, **lengths), None


class SelfAttention(nn.Module):
    """Multi-head self-attention without its add-norm."""

    def __init__(self, config: GlyphCRMConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.p = config.attention_probs_dropout_prob
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, queries: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output ``(B, Q, d)`` and, from the eager implementation, the attention probabilities.

        Args:
            hidden_states: ``(B, L, d)``, which give keys and values.
            attention_mask: in the attention implementation's form.
            queries: ``(B, Q, d)``; default `hidden_states`.
            kwargs: of transformers' attention interface. With `cu_seq_lens_q` and `cu_seq_lens_k` the batch is one
                row in which each sequence attends to itself.
        """
        queries = hidden_states if queries is None else queries
        query = self._heads(self.query(queries))
        key, value = self._heads(self.key(hidden_states)), self._heads(self.value(hidden_states))
        dropout = self.p if self.training else 0.0
        is_packed = "cu_seq_lens_q" in kwargs
        is_plain = (is_packed or attention_mask is None) and not kwargs.get("is_causal")
        fits_c = 0 < dropout < 1 and is_plain and attention_fits_cpu(query, key, value)
        attend = self._implementation(is_packed, fits_c)
        context, probabilities = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.output(context.reshape(queries.shape)), probabilities

    def _implementation(self, is_packed: bool, fits_c: bool) -> Callable[..., tuple[Tensor, Tensor | None]]:
        name = self.config._attn_implementation
        if name == "sdpa" and fits_c and kernel_backend(self.config) == "auto":
            return cpu_dropout_attention
        if name == "sdpa" and is_packed:
            return packed_sdpa_attention
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, self.head_size).transpose(1, 2)
