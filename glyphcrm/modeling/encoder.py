"""The encoder: post-LN BERT blocks whose second add-norm may take a glyph skip."""

from __future__ import annotations

from typing import Any

from glyphcrm_kernels import AddNorm
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.modeling.attention import SelfAttention
from glyphcrm.modeling.backend import kernel_backend
from glyphcrm.modeling.packing import at_positions
from glyphcrm.modeling.projection import project


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
        """Return the output for `hidden_states` ``(B, L, d)``: ``(B, L, d)``, or ``(B, Q, d)`` at `positions` alone.

        Args:
            attention_mask: what transformers' `create_bidirectional_mask` gives; with `positions`, that of them.
            skip: ``(U, d)``, the glyph skip of each distinct character, or None.
            skip_index: ``(B, L)`` int64, each token's row in `skip`.
            positions: ``(B, Q)`` int64, the tokens whose output is wanted; the others are only attended to.
        """
        backend = kernel_backend(self.config, "add_norm", hidden_states.device)
        wanted = hidden_states
        if positions is not None:
            wanted = at_positions(hidden_states, positions)
            skip_index = None if skip_index is None else skip_index.gather(1, positions)
        attention, _ = self.attention(hidden_states, attention_mask, wanted, **kwargs)
        hidden_states = self.attention_norm(attention, wanted, backend=backend)
        inner = self.activation(project(self.intermediate, hidden_states, self.config))
        feed_forward = project(self.output, inner, self.config)
        return self.output_norm(feed_forward, hidden_states, skip, skip_index, backend)
