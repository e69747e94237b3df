"""The two models of a comparison, and a training step of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import BertForPreTraining

from bench.throughput.material import Batch
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import bert_config
from glyphcrm.modeling.glyph_vectors import SharedGlyphs

LEARNING_RATE = 1e-4  # the paper's

Arguments = Callable[[Batch], Batch]


def build_glyphcrm(config: GlyphCRMConfig, atlas: GlyphAtlas) -> GlyphCRMForPreTraining:
    """Return a new model in training mode, initialised as pre-training does."""
    torch.manual_seed(0)
    return GlyphCRMForPreTraining.from_atlas(config, atlas).train()


def build_bert(config: GlyphCRMConfig) -> BertForPreTraining:
    """Return transformers' own BERT of the same sizes and vocabulary, in training mode."""
    torch.manual_seed(0)
    return BertForPreTraining(bert_config(config, attn_implementation="sdpa")).train()


def glyphcrm_arguments(batch: Batch) -> Batch:
    """Return what GlyphCRM's training passes to the model: all that the collator made."""
    return batch


def bert_arguments(batch: Batch) -> Batch:
    """Return the same batch as BERT takes it: padded ids, and labels from which it makes logits everywhere."""
    arguments = {name: batch[name] for name in ("attention_mask", "token_type_ids", "labels", "next_sentence_label")}
    return {"input_ids": batch["glyph_ids"][batch["glyph_index"]], **arguments}


class TrainingStep:
    """A step of a model with fused AdamW; what it is called with are the micro-batches whose gradients add up."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        self.model, self.arguments = model, arguments
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)

    def __call__(self, micro_batches: Sequence[Batch], share_glyphs: bool = True) -> float:
        """Take the step and return the loss.

        With `share_glyphs` a GlyphCRM's HanGlyph runs once for several micro-batches, as in pre-training.
        """
        total = 0.0
        batches = [self.arguments(batch) for batch in micro_batches]
        shares = share_glyphs and len(batches) > 1 and isinstance(self.model, GlyphCRMForPreTraining)
        glyphs = SharedGlyphs(self.model.glyphcrm, batches) if shares else None
        for batch in batches:
            loss: Tensor = self.model(**(glyphs.arguments(batch) if glyphs else batch)).loss / len(batches)
            loss.backward()
            total += loss.item()
        if glyphs:
            glyphs.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total


@torch.inference_mode()
def read_texts(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Compute the last hidden states of every batch."""
    for batch in batches:
        _ = model(**batch).last_hidden_state
