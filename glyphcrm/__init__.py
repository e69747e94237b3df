"""GlyphCRM: a BERT-shaped Chinese language model that reads every character as a picture.

Importing this package registers the model and its tokenizer with transformers' Auto classes.
The models themselves are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.registration import register_when_imported
from glyphcrm.tokenization import GlyphCRMTokenizer

if TYPE_CHECKING:
    from glyphcrm.glyphs.atlas import GlyphAtlas
    from glyphcrm.modeling import (
        GlyphCRMForMaskedLM,
        GlyphCRMForNextSentencePrediction,
        GlyphCRMForPreTraining,
        GlyphCRMForSequenceClassification,
        GlyphCRMForTokenClassification,
        GlyphCRMModel,
    )

__all__ = [
    "GlyphAtlas",
    "GlyphCRMConfig",
    "GlyphCRMForMaskedLM",
    "GlyphCRMForNextSentencePrediction",
    "GlyphCRMForPreTraining",
    "GlyphCRMForSequenceClassification",
    "GlyphCRMForTokenClassification",
    "GlyphCRMModel",
    "GlyphCRMTokenizer",
    "preset",
]

register_when_imported()


def __getattr__(name: str) -> Any:
    if name == "GlyphAtlas":
        return importlib.import_module("glyphcrm.glyphs.atlas").GlyphAtlas
    if name in __all__:
        return getattr(importlib.import_module("glyphcrm.modeling"), name)
    raise AttributeError(f"module 'glyphcrm' has no attribute {name!r}")
