"""Small models on disk, as `glyphcrm web` is given them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForPreTraining

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import (
    GlyphCRMForPreTraining,
    GlyphCRMForSequenceClassification,
    GlyphCRMForTokenClassification,
)
from glyphcrm.modeling.bert import bert_config
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.web.models import Models, load_models
from tests.classic import VOCABULARY_SIZE


@pytest.fixture(scope="session")
def directories(
    atlas: GlyphAtlas, tokenizer: GlyphCRMTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A pre-trained model, a classifier, a tagger, and a BERT beside the first."""
    where = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    made = {}
    for name, head, labels in (
        ("pretrained", GlyphCRMForPreTraining, ("0", "1")),
        ("judge", GlyphCRMForSequenceClassification, ("bad", "good")),
        ("names", GlyphCRMForTokenClassification, ("O", "B-PER", "I-PER")),
    ):
        config = preset("nano", vocab_size=VOCABULARY_SIZE)
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
        model = head.from_atlas(config, atlas)
        with torch.no_grad():  # a new model's vectors hardly differ, and its answers neither
            for layer in (model.glyph_model.hanglyph.vector, *(getattr(model, part) for part in model.parts)):
                for weight in layer.parameters():
                    if weight.dim() == 2:
                        weight.mul_(8)
        made[name] = model
    made["bert"] = BertForPreTraining(bert_config(made["pretrained"].config))
    for name, model in made.items():
        known = tokenizer
        if name == "bert":
            known = GlyphCRMTokenizer.from_tokens(atlas.tokens[:VOCABULARY_SIZE], where / "tokens")
        save_checkpoint(model, known, where / name)
    return {name: where / name for name in made}


@pytest.fixture(scope="session")
def models(directories: dict[str, Path]) -> Models:
    """All of them, loaded."""
    tasks = (directories["judge"], directories["names"])
    return load_models(directories["pretrained"], tasks, (directories["bert"],))
