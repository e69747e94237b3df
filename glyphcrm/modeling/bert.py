"""The baseline: transformers' BERT with GlyphCRM's sizes and vocabulary, trained on the same batches."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.modeling.heads import GlyphCRMForPreTrainingOutput, log_frequencies, predictable
from glyphcrm.modeling.positions import sinusoidal_positions

# The fields of both configurations that shape the encoder.
ENCODER_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)
SPECIAL_IDS = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


def bert_config(config: GlyphCRMConfig, **overrides: Any) -> BertConfig:
    """Return the BERT of the same depth, width and vocabulary; its embedding table has no read-only rows."""
    same = ("vocab_size", "initializer_range", *ENCODER_FIELDS, *SPECIAL_IDS)
    return BertConfig(**{name: getattr(config, name) for name in same}, **overrides)


class BertBaseline(BertForPreTraining):
    """`transformers.BertForPreTraining` that reads the batches of `padded_batch`.

    All is transformers' own, but logits are computed at the positions to predict alone, as in
    `GlyphCRMForPreTraining`, and characters outside the vocabulary are [UNK].
    """

    accepts_loss_kwargs = False  # two means with different counts: see PretrainingObjective
    config: BertConfig

    @classmethod
    def for_config(cls, config: GlyphCRMConfig, **overrides: Any) -> Self:
        """Return a new baseline of a GlyphCRM's sizes, with that one's kind of position embeddings.

        Sinusoidal ones get the scale of BERT's token embeddings, `initializer_range`.
        """
        model = cls(bert_config(config, **overrides))
        # Where the decoder is not tied, transformers leaves a second bias that nothing reads.
        model.cls.predictions.bias = model.cls.predictions.decoder.bias
        if config.position_initializer == "sinusoidal":
            positions = model.bert.embeddings.position_embeddings
            waves = sinusoidal_positions(positions.num_embeddings, positions.embedding_dim, config.initializer_range)
            with torch.no_grad():
                positions.weight.copy_(waves)
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        labels: Tensor,
        prediction_index: Tensor,
        next_sentence_label: Tensor,
        glyph_ids: Tensor | None = None,
        glyph_index: Tensor | None = None,
        token_index: Tensor | None = None,
    ) -> GlyphCRMForPreTrainingOutput:
        """Return losses and logits of a batch of `padded_batch`; what is GlyphCRM's alone is not used."""
        ids = predictable(input_ids, self.config)
        if attention_mask.device.type != "cpu" and self.config._attn_implementation == "sdpa":
            # As SDPA takes it: of any other mask transformers asks the device whether it masks anything.
            attention_mask = attention_mask[:, None, None] != 0
        sequence, pooled = self.bert(ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[:2]
        logits, nsp_logits = self.cls(sequence.flatten(0, 1)[prediction_index], pooled)
        targets = predictable(labels.flatten()[prediction_index], self.config)
        mlm_loss = F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(prediction_index), 1)
        nsp_loss = F.cross_entropy(nsp_logits.float(), next_sentence_label)
        return GlyphCRMForPreTrainingOutput(mlm_loss + nsp_loss, mlm_loss, nsp_loss, logits, nsp_logits)

    @torch.no_grad()
    def start_from_frequencies(self, counts: Tensor) -> None:
        """As `GlyphCRMForPreTraining.start_from_frequencies`."""
        self.cls.predictions.bias.copy_(log_frequencies(counts))

    def plain(self) -> BertForPreTraining:
        """Return the same weights as the class that transformers' users know."""
        model = BertForPreTraining(self.config)
        model.load_state_dict(self.state_dict())
        return model
