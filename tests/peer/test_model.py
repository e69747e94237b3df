"""transformers' tests of a model and its configuration, on every model of this package."""

from __future__ import annotations

import unittest
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.auto import modeling_auto

from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.modeling import (
    GlyphCRMForMaskedLM,
    GlyphCRMForPreTraining,
    GlyphCRMModel,
    GlyphCRMPreTrainedModel,
)
from glyphcrm.modeling.hanglyph import GlyphTable
from glyphcrm.modeling.heads import HEADS
from tests.peer.mixins import mixin

ModelTesterMixin = mixin("test_modeling_common", "ModelTesterMixin")
TrainingTesterMixin = mixin("test_training_mixin", "TrainingTesterMixin")
ConfigTester = mixin("test_configuration_common", "ConfigTester")

pytestmark = pytest.mark.slow  # both together take some minutes
NAMES = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForNextSentencePrediction": "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
}


class ModelTester:
    """Sizes, a configuration and a batch, as the mixins ask for them."""

    batch_size, seq_length, num_choices = 3, 7, 4
    is_training = True
    causal_lm_class = GlyphCRMForMaskedLM  # which one `TrainingTesterMixin` trains

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        config = self.get_config()
        self.hidden_size, self.vocab_size = config.hidden_size, config.vocab_size
        self.num_hidden_layers, self.num_attention_heads = config.num_hidden_layers, config.num_attention_heads

    def get_config(self) -> GlyphCRMConfig:
        return preset("nano", num_hidden_layers=2, vocab_size=99, num_glyphs=110)

    def prepare_config_and_inputs_for_common(self) -> tuple[GlyphCRMConfig, dict[str, Tensor]]:
        shape = self.batch_size, self.seq_length
        mask = torch.ones(shape, dtype=torch.int64)
        mask[1, 4:] = 0
        ids = torch.randint(5, 110, shape)
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(autouse=True)
def _names_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixins find out by a class's name what labels it takes; for classes outside of transformers, nowhere."""
    for auto_class, names in NAMES.items():
        model_class = HEADS.get(auto_class, GlyphCRMModel)
        monkeypatch.setitem(getattr(modeling_auto, names), "glyphcrm", model_class.__name__)


@pytest.fixture(autouse=True)
def _models_have_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixins make models from configurations alone, whose pictures would all be blank; some compare just those."""
    if "can_init" in request.node.name:
        return
    initialize = GlyphCRMPreTrainedModel._init_weights

    def draw(self: GlyphCRMPreTrainedModel, module: nn.Module) -> None:
        initialize(self, module)
        if isinstance(module, GlyphTable):
            noise = torch.Generator().manual_seed(0)
            pictures = torch.randint(256, module.bitmaps.shape, dtype=torch.uint8, generator=noise)
            init.copy_(module.bitmaps, pictures)

    monkeypatch.setattr(GlyphCRMPreTrainedModel, "_init_weights", draw)


class TestModel(ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (GlyphCRMModel, *HEADS.values())
    model_tester: ModelTester
    test_resize_embeddings = False

    def setUp(self) -> None:
        self.model_tester = ModelTester(self)

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> dict[str, Tensor]:
        inputs: dict[str, Tensor] = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is GlyphCRMForPreTraining:
            # As in the tests of BertForPreTraining: no name tells that there are two labels.
            rows, length = self.model_tester.batch_size, self.model_tester.seq_length
            inputs["labels"] = torch.zeros(rows, length, dtype=torch.int64)
            inputs["next_sentence_label"] = torch.zeros(rows, dtype=torch.int64)
        return inputs

    def test_config(self) -> None:
        ConfigTester(self, config_class=GlyphCRMConfig, hidden_size=32, num_attention_heads=2).run_common_tests()
