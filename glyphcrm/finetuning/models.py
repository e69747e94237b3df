"""A checkpoint directory, of GlyphCRM or of a BERT, with a new head for a task; and a fine-tuned one again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForTokenClassification,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from glyphcrm.checkpoint import load_checkpoint
from glyphcrm.config_file import architecture_of, read_config
from glyphcrm.config_values import check_number
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError, shown
from glyphcrm.finetuning.bert_heads import BertForClsClassification
from glyphcrm.finetuning.options import SHORTEST, TRUNCATIONS
from glyphcrm.modeling import GlyphCRMModel, GlyphCRMPreTrainedModel
from glyphcrm.modeling.backend import on_accelerator
from glyphcrm.modeling.heads import HEADS
from glyphcrm.tasks import Kind

READING = "reading"  # in config.json
BERT = "bert"
GLYPHCRM = GlyphCRMConfig.model_type
CLASSIFIERS: dict[str, type[PreTrainedModel]] = {
    GLYPHCRM: HEADS["AutoModelForSequenceClassification"],
    BERT: BertForClsClassification,
}
TAGGERS: dict[str, type[PreTrainedModel]] = {
    GLYPHCRM: HEADS["AutoModelForTokenClassification"],
    BERT: BertForTokenClassification,
}


@dataclass(frozen=True)
class Reading:
    """What a model has read, in training and for its scores, of a text that is too long; arguments of `encode`."""

    max_length: int
    truncation: str = "head"

    def record(self, config: PreTrainedConfig) -> None:
        """Let it be saved with a model, whatever is then made of it."""
        setattr(config, READING, asdict(self))

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Reading:
        """Return that of a saved model: what fits its positions, if it was not fine-tuned here.

        Raises:
            UserError: a wrong record.
        """
        positions: int = config.max_position_embeddings
        kept = getattr(config, READING, None)
        if kept is None:
            return cls(positions)
        if not isinstance(kept, dict) or kept.keys() != {"max_length", "truncation"}:
            raise UserError(f"{READING} is {shown(str(kept))}; give max_length and truncation, or leave it out")
        check_number(f"max_length of {READING}", kept["max_length"], min(SHORTEST, positions), positions, int)
        if kept["max_length"] is None or kept["truncation"] not in TRUNCATIONS:
            raise UserError(f"{READING} is {shown(str(kept))}; give a number and one of {', '.join(TRUNCATIONS)}")
        return cls(**kept)


def load_model(
    directory: Path, kind: Kind, labels: Sequence[str], *, seed: int, dropout: float | None, attention: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pre-trained encoder, give it a new head, and load its tokenizer.

    Whatever head the checkpoint has is left out; the new one is a linear layer on every character for tagging, else on
    [CLS], with logits in the order of `labels`. Its weights depend on `seed` and the model's width alone. Weights are
    float32, whatever they are stored in. Without `dropout`, which is of every layer and of attention, the checkpoint's
    stays.

    Raises:
        UserError: no GlyphCRM or BERT there, or a damaged one.
    """
    model_type = read_config(directory)["model_type"]
    settings: dict[str, Any] = {"attn_implementation": attention, "dtype": torch.float32}
    if dropout is not None:
        settings |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    encoder, tokenizer = _load(directory, GlyphCRMModel if model_type == GLYPHCRM else BertModel, settings)
    config = encoder.config
    config.classifier_dropout = None if dropout is not None else config.classifier_dropout
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    model = (TAGGERS if kind is Kind.TAGGING else CLASSIFIERS)[model_type](config)
    setattr(model, model.base_model_prefix, encoder)
    start_head(model, seed)
    return model, tokenizer


def start_head(model: PreTrainedModel, seed: int) -> None:
    """Draw the weights of the linear layer: normal, with the model's initial standard deviation; no bias."""
    head = model.get_submodule("classifier")
    (linear,) = (module for module in head.modules() if isinstance(module, nn.Linear))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(0.0, model.config.initializer_range, generator=generator)
        linear.bias.zero_()


def load_finetuned(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model that `finetune` has kept, ready for `predict`, onto the GPU if there is one.

    Its labels are ``model.config.id2label``.

    Raises:
        UserError: no fine-tuned GlyphCRM or BERT there, or a damaged one.
    """
    config = read_config(directory)
    known = {cls.__name__: cls for classes in (CLASSIFIERS, TAGGERS) for cls in classes.values()}
    name = architecture_of(config)
    if name not in known:
        raise UserError(
            f"{directory}: holds {name or 'nothing'}, not a fine-tuned model; give one that finetune.py has kept"
        )
    model, tokenizer = _load(directory, known[name], {"dtype": torch.float32})
    return on_accelerator(model).eval(), tokenizer


def load_bert_for_masked_lm(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pre-trained BERT with its masked-LM head, in evaluation mode, and its tokenizer.

    Raises:
        UserError: no BERT there, a damaged one, or one without that head.
    """
    model, tokenizer = _load(directory, BertForMaskedLM, {"dtype": torch.float32})
    return model.eval(), tokenizer


def reads_glyphs(model: nn.Module) -> bool:
    """Whether the model takes distinct glyphs, as `glyphcrm.data.collator.distinct_glyphs` finds them."""
    return isinstance(model, GlyphCRMPreTrainedModel)


def _load(
    directory: Path, model_class: type[PreTrainedModel], settings: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if model_class in (BertModel, GlyphCRMModel):
        settings = {"add_pooling_layer": False, **settings}
    if issubclass(model_class, GlyphCRMPreTrainedModel):
        return load_checkpoint(directory, model_class, heads=model_class is not GlyphCRMModel, **settings)
    settings = {"return_dict": True, **settings}
    try:
        loaded: Any = model_class.from_pretrained(directory, output_loading_info=True, **settings)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged configuration or file makes transformers raise
        raise UserError(
            f"{directory}: no BERT with a tokenizer that can be read ({type(error).__name__}); copy both again"
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(f"{directory}: the weights lack {min(report['missing_keys'])}; copy them again")
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}; "
            "copy both from the same checkpoint"
        )
    return model, tokenizer
