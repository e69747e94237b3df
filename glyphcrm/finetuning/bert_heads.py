"""The head on [CLS] that GlyphCRM has, for transformers' BERT.

`transformers.BertForSequenceClassification` puts a tanh layer between [CLS] and the classes; the paper does not.
For tagging `transformers.BertForTokenClassification` is already one linear layer.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import BertForTokenClassification
from transformers.modeling_outputs import SequenceClassifierOutput


class BertForClsClassification(BertForTokenClassification):
    """The same layers as for tagging, of which the linear one reads the hidden state of [CLS] alone."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Return logits ``(B, num_labels)``, and the mean cross-entropy when there are `labels` ``(B,)``."""
        outputs = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state[:, 0]))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
