"""The models, as transformers' `PreTrainedModel`s."""

from glyphcrm.modeling.heads import (
    GlyphCRMForMaskedLM,
    GlyphCRMForNextSentencePrediction,
    GlyphCRMForPreTraining,
    GlyphCRMForPreTrainingOutput,
    GlyphCRMForSequenceClassification,
    GlyphCRMForTokenClassification,
)
from glyphcrm.modeling.model import GlyphCRMModel, GlyphCRMPreTrainedModel

__all__ = [
    "GlyphCRMForMaskedLM",
    "GlyphCRMForNextSentencePrediction",
    "GlyphCRMForPreTraining",
    "GlyphCRMForPreTrainingOutput",
    "GlyphCRMForSequenceClassification",
    "GlyphCRMForTokenClassification",
    "GlyphCRMModel",
    "GlyphCRMPreTrainedModel",
]
