"""The models, as transformers' `PreTrainedModel`s."""

from glyphcrm.modeling.drop_in import BertPatch, patch_bert
from glyphcrm.modeling.embedding import HanGlyphEmbedding
from glyphcrm.modeling.heads import (
    GlyphCRMForMaskedLM,
    GlyphCRMForMultipleChoice,
    GlyphCRMForNextSentencePrediction,
    GlyphCRMForPreTraining,
    GlyphCRMForPreTrainingOutput,
    GlyphCRMForQuestionAnswering,
    GlyphCRMForSequenceClassification,
    GlyphCRMForTokenClassification,
)
from glyphcrm.modeling.look_alikes import nearest
from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.modeling.pretrained import GlyphCRMPreTrainedModel

__all__ = [
    "BertPatch",
    "GlyphCRMForMaskedLM",
    "GlyphCRMForMultipleChoice",
    "GlyphCRMForNextSentencePrediction",
    "GlyphCRMForPreTraining",
    "GlyphCRMForPreTrainingOutput",
    "GlyphCRMForQuestionAnswering",
    "GlyphCRMForSequenceClassification",
    "GlyphCRMForTokenClassification",
    "GlyphCRMModel",
    "GlyphCRMPreTrainedModel",
    "HanGlyphEmbedding",
    "nearest",
    "patch_bert",
]
