"""The encoder: post-LN BERT blocks whose second add-norm may take a glyph skip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from glyphcrm_kernels import AddNorm
from glyphcrm_kernels.attention_cpu import attention_fits_cpu
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.modeling.cpu_attention import cpu_dropout_attention
from glyphcrm.modeling.kernel_backend import kernel_backend
from glyphcrm.modeling.packing import packed_sdpa_attention


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


class EncoderBlock(GradientCheckpointingLayer):
    """``h' = LN(h + MHA(h))``; ``out = LN(h' + FFN(h') [+ glyph skip])``."""

    def __init__(self, config: GlyphCRMConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = SelfAttention(config)
        self.attention_norm = AddNorm(config.hidden_size, config.hidden_dropout_prob, config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = AddNorm(config.hidden_size, config.hidden_dropout_prob, config.layer_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        skip: Tensor | None = None,
        skip_index: Tensor | None = None,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the block's output ``(B, L, d)``, or ``(B, Q, d)`` at `positions` alone.

        Args:
            hidden_states: ``(B, L, d)``.
            attention_mask: what transformers' `create_bidirectional_mask` gives; with `positions`, that of them.
            skip: ``(U, d)``, the glyph skip of each distinct character, or None.
            skip_index: ``(B, L)`` int64, each token's row in `skip`.
            positions: ``(B, Q)`` int64, the tokens whose output is wanted; the others are but attended to.
            kwargs: as in `SelfAttention.forward`.
        """
        backend = kernel_backend(self.config)
        wanted = hidden_states
        if positions is not None:
            wanted = hidden_states.take_along_dim(positions.unsqueeze(2), 1)
            skip_index = None if skip_index is None else skip_index.take_along_dim(positions, 1)
        attention, _ = self.attention(hidden_states, attention_mask, wanted, **kwargs)
        hidden_states = self.attention_norm(attention, wanted, backend=backend)
        feed_forward = self.output(self.activation(self.intermediate(hidden_states)))
        return self.output_norm(feed_forward, hidden_states, skip, skip_index, backend)
