"""Self-attention, and its implementations in the form of transformers' attention interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from glyphcrm_kernels import dropout_attention
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.modeling.backend import kernel_backend
from glyphcrm.modeling.packed_attention import Sequences, attend_in_sequences
from glyphcrm.modeling.projection import project


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
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


def sdpa_attention(
    module: SelfAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int = 0,
    max_length_k: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Fused attention, in the form of transformers' attention interface: `dropout_attention` where it applies.

    `query` is ``(B, heads, Q, head size)``, `key` and `value` ``(B, heads, T, head size)``, the result
    ``(B, Q, heads, head size)``. With `cu_seq_lens_q` it is a packed row (B = 1), see `Sequences`; `attention_mask` is
    then not used.
    """
    backend = kernel_backend(module.config, "dropout_attention")
    if cu_seq_lens_q is not None and cu_seq_lens_k is not None:
        sequences = Sequences(cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
        return attend_in_sequences(query, key, value, sequences, scaling, dropout, backend), None
    if 0 < dropout < 1 and attention_mask is None and not kwargs.get("is_causal"):
        return dropout_attention(query, key, value, scaling=scaling, p=dropout, backend=backend), None
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


# By `attn_implementation`; what is not here is transformers'.
ATTENTIONS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
}


def implementation(config: GlyphCRMConfig, kwargs: dict[str, Any]) -> str:
    """Return the name of the attention to be used: the eager one where the fused ones lack the probabilities asked for.

    `kwargs` are those of the model's forward.
    """
    name = config._attn_implementation
    is_fused = name in ("sdpa", "flex_attention") or is_flash_attention_requested(config)
    return "eager" if is_fused and kwargs.get("output_attentions") else name


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

        Keys and values are of `hidden_states` ``(B, L, d)``, queries of `queries` ``(B, Q, d)`` or the same. `kwargs`
        are transformers'; with `cu_seq_lens_q` and `cu_seq_lens_k` each sequence of a packed row attends to itself.
        """
        queries = hidden_states if queries is None else queries
        query = self._heads(self.query, queries)
        key, value = self._heads(self.key, hidden_states), self._heads(self.value, hidden_states)
        dropout = self.p if self.training else 0.0
        name = implementation(self.config, kwargs)
        attend = ATTENTIONS.get(name) or ALL_ATTENTION_FUNCTIONS[name]
        context, probabilities = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return project(self.output, context.reshape(queries.shape), self.config), probabilities

    def _heads(self, layer: nn.Linear, x: Tensor) -> Tensor:
        projected = project(layer, x, self.config)
        return projected.view(*projected.shape[:-1], -1, self.head_size).transpose(1, 2)
