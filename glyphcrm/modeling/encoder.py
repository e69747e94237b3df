"""The encoder: post-LN BERT blocks whose second add-norm may take a glyph skip."""

from __future__ import annotations

import torch
from glyphcrm_kernels import AddNorm
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
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
        self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output ``(B, L, d)`` and, from the eager implementation, the attention probabilities."""
        heads = (*hidden_states.shape[:-1], -1, self.head_size)
        query, key, value = (
            projection(hidden_states).view(heads).transpose(1, 2) for projection in (self.query, self.key, self.value)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        context, probabilities = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.p if self.training else 0.0,
            **kwargs,
        )
        return self.output(context.reshape(*hidden_states.shape[:-1], -1)), probabilities


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
        **kwargs: object,
    ) -> Tensor:
        """Return the block's output ``(B, L, d)``.

        Args:
            hidden_states: ``(B, L, d)``.
            attention_mask: what transformers' `create_bidirectional_mask` gives.
            skip: ``(U, d)``, the glyph skip of each distinct character, or None.
            skip_index: ``(B, L)`` int64, each token's row in `skip`.
        """
        backend = kernel_backend(self.config)
        attention, _ = self.attention(hidden_states, attention_mask, **kwargs)
        hidden_states = self.attention_norm(attention, hidden_states, backend=backend)
        feed_forward = self.output(self.activation(self.intermediate(hidden_states)))
        return self.output_norm(feed_forward, hidden_states, skip, skip_index, backend)
