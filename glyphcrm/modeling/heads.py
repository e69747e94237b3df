"""The heads: masked language modelling, next-sentence prediction, classification, tagging, answers, choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.errors import UserError
from glyphcrm.modeling.look_alikes import encoded
from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.modeling.open_decoder import fitted_rows, is_never, lengthen, picture_features
from glyphcrm.modeling.packing import first_states
from glyphcrm.modeling.pretrained import GlyphCRMPreTrainedModel


def predictable(ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """Return `ids` with [UNK] instead of characters that can be read but not predicted."""
    return ids.masked_fill(ids >= config.vocab_size, config.unk_token_id)


def log_frequencies(counts: Tensor) -> Tensor:
    """Return the logarithms of the shares of `counts` ``(n,)``, each count raised by 1 since it may be 0."""
    smoothed = counts.float() + 1
    return torch.log(smoothed / smoothed.sum())


def mean_over_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits ``(B, C)`` over the labels ``(B,)`` that are not -100; 0 without any."""
    labels = labels.view(-1)
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (labels != IGNORED_LABEL).sum().clamp_min(1)


class MaskedLMHead(nn.Module):
    """Dense, GELU, LayerNorm, then an untied linear layer to the vocabulary."""

    def __init__(self, config: GlyphCRMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map ``(..., d)`` to logits ``(..., vocab_size)``."""
        return self.decoder(self.transform(hidden_states))

    def transform(self, hidden_states: Tensor) -> Tensor:
        """Return what the decoder reads, ``(..., d)`` as its argument."""
        return self.norm(self.activation(self.dense(hidden_states)))


class NextSentenceHead(nn.Module):
    """Tanh pooler on [CLS] and a linear layer to two classes: 0 "is next", 1 "is not"."""

    def __init__(self, config: GlyphCRMConfig) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, cls_states: Tensor) -> Tensor:
        """Map the states of [CLS] ``(B, d)`` to logits ``(B, 2)``."""
        return self.classifier(torch.tanh(self.pooler(cls_states)))


class LinearHead(nn.Module):
    """Dropout and one linear layer: the paper's head for classification and for tagging."""

    def __init__(self, config: GlyphCRMConfig, outputs: int | None = None) -> None:
        super().__init__()
        p = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if p is None else p)
        self.linear = nn.Linear(config.hidden_size, outputs or config.num_labels or 2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map ``(..., d)`` to ``(..., outputs)``, by default one for each label."""
        return self.linear(self.dropout(hidden_states))


class GlyphCRMHead(GlyphCRMPreTrainedModel):
    """What all models with heads share: the encoder, and `parts` that read its states."""

    parts: ClassVar[dict[str, Callable[[GlyphCRMConfig], nn.Module]]]  # what makes each module beside the encoder
    reads_first_token: ClassVar[bool] = False  # the head reads the state of [CLS] alone
    output_class: ClassVar[type[ModelOutput]]  # of `forward`, with fields loss, logits, hidden_states, attentions

    def __init__(self, config: GlyphCRMConfig) -> None:
        super().__init__(config)
        self.glyphcrm = GlyphCRMModel(config)
        for name, make in self.parts.items():
            self.add_module(name, make(config))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        glyph_ids: Tensor | None = None,
        glyph_index: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """As `GlyphCRMModel.forward`, then `logits_and_loss`; the class says what its labels are."""
        form = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, glyph_ids, glyph_index)
        outputs = self.glyphcrm(*form, self.reads_first_token, return_dict=True, **kwargs)
        states = outputs.first_states if self.reads_first_token else outputs.last_hidden_state
        logits, loss = self.logits_and_loss(states, labels, **kwargs)
        return self.output_class(loss, logits, outputs.hidden_states, outputs.attentions)

    def logits_and_loss(self, states: Tensor, labels: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Return what the head makes of states ``(B, L, d)``, or of [CLS] alone ``(B, d)``, and the loss of labels."""
        raise NotImplementedError


class _MaskedLM(GlyphCRMHead):
    """Masked language modelling on top of hidden states, at as few positions as the caller needs."""

    mlm: MaskedLMHead

    def logits_and_loss(
        self,
        states: Tensor,
        labels: Tensor | None,
        *,
        prediction_index: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits, and the mean cross-entropy over the labels when there are labels.

        With `prediction_index`, or in training, logits are computed at the labelled positions alone and
        have shape ``(M, vocab_size)``; else ``(B, L, vocab_size)``. `prediction_index` ``(M,)`` int64, the flat
        positions of the labels, comes from the collator; without it a GPU has to be waited for. The labels may then be
        those at these positions alone, ``(M,)``.
        A label that is not predicted counts as [UNK]. `num_items_in_batch` replaces the number of labels in the mean:
        transformers' `Trainer` counts them over all the batches of an optimiser step.
        """
        if labels is None:
            return self.mlm(states), None
        are_chosen = prediction_index is not None and labels.dim() == 1
        labels = labels.flatten()
        if prediction_index is None and self.training:
            prediction_index = (labels != IGNORED_LABEL).nonzero().squeeze(1)
        if prediction_index is not None:
            labels = labels if are_chosen else labels[prediction_index]
            states = states.flatten(0, 1)[prediction_index]
        logits, labels = self.mlm(states), predictable(labels, self.config)
        flat = logits.view(-1, self.config.vocab_size).float()
        # By the logits, not by the bias, which may be on another device or in parts.
        of_labels = flat.detach().gather(1, labels.clamp_min(0).unsqueeze(1)).squeeze(1)
        labels = labels.masked_fill(is_never(of_labels), self.config.unk_token_id)
        total = F.cross_entropy(flat, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        if num_items_in_batch is None:
            # A batch without a label has loss 0, not NaN.
            num_items_in_batch = (labels != IGNORED_LABEL).sum().clamp_min(1)
        return logits, total / num_items_in_batch

    @torch.no_grad()
    def start_from_frequencies(self, counts: Tensor) -> None:
        """Set the decoder's bias to the logarithm of the characters' frequencies.

        A new model then begins at the unigram entropy instead of spending its first steps, the ones with the largest
        gradients, on which characters are frequent. `counts` ``(vocab_size,)``: how often each is to be predicted.
        """
        self.mlm.decoder.bias.copy_(log_frequencies(counts))

    @torch.no_grad()
    def start_from_vectors(self) -> None:
        """Set the decoder's rows to the glyph vectors of their characters, as where a `TiedDecoder` ties them."""
        rows = torch.arange(self.config.vocab_size, device=self.device)
        self.mlm.decoder.weight.copy_(
            self.glyphcrm.hanglyph.all_vectors(rows, self.glyphcrm.glyph_table.bitmaps).vector
        )

    def predicts(self, ids: Tensor) -> Tensor:
        """Return for each of some atlas rows, int64 of any shape on the model's device, whether it can be predicted."""
        is_row = (ids >= 0) & (ids < self.config.vocab_size)
        return is_row & ~is_never(self.mlm.decoder.bias[ids.where(is_row, 0)])

    @torch.no_grad()
    def extend_decoder(self, characters: str | None = None, counts: Mapping[str, int] | None = None) -> str:
        """Let the model predict more characters, and return these: by decoder rows made from their pictures.

        The rows and biases come from a ridge regression of the learned ones on what HanGlyph says of their characters,
        and on how frequent they are; see `glyphcrm.modeling.open_decoder`. Rows that were made before count as learned
        ones. The logits of all other characters stay. `config.vocab_size` then reaches up to the last atlas row that is
        predicted; rows before it that were not asked for have a bias of -10,000, and are never predicted. The decoder
        then has new parameters: call this before an optimiser is made.

        Args:
            characters: a text, whose characters are those of its normal form (see `glyphcrm.normalization`); None for
                all that the model reads.
            counts: how often each character stands in a text like those to come, of 1,000,000 characters or more (see
                `glyphcrm.vocabulary.count_characters`). With them new characters are about as likely as they should
                be, without them only as likely as their pictures look.

        Raises:
            UserError: `counts` has a negative one, or none of what the model predicts; a character has no row in the
                atlas, no ink in its picture, or is predicted already; there is none to add; or nothing has been learned
                that the rows could come from.
        """
        decoder, known = self.mlm.decoder, self.vocabulary
        tokens = list(known)
        readable = torch.tensor([row for token, row in known.items() if len(token) == 1])
        is_predicted = self.predicts(torch.arange(len(tokens), device=self.device)).cpu()
        has_ink = (self.glyph_model.glyph_table() != 0).any(1).cpu()
        if characters is None:
            wanted = readable[(~is_predicted & has_ink)[readable]]
        else:
            wanted = self.rows_of(characters).unique()
            for what, is_wrong in (("is predicted already", is_predicted), ("has no ink in its picture", ~has_ink)):
                if wrong := wanted[is_wrong[wanted]].tolist():
                    raise UserError(f"{(char := tokens[wrong[0]])} (U+{ord(char):04X}) {what}; leave it out")
        learned = readable[(is_predicted & has_ink)[readable]]
        if not len(wanted) or not len(learned):
            reason = "no character to add to those that are predicted" if not len(wanted) else "no learned decoder rows"
            raise UserError(f"the decoder cannot be extended: {reason}")
        of_rows = None
        if counts is not None:
            number = torch.tensor([counts.get(token, 0) for token in tokens])
            of_rows = number[learned], number[wanted]
            if number.min() < 0 or not of_rows[0].any():
                raise UserError("counts must be 0 or more, and above 0 for a character that is predicted")
        features = picture_features(encoded(self, torch.cat([learned, wanted])))  # takes seconds: after all checks
        known_features, new_features = features.split([len(learned), len(wanted)])
        rows = decoder.weight[learned], decoder.bias[learned]
        weight, bias = fitted_rows(*rows, known_features, new_features, of_rows)
        self.config.vocab_size = max(self.config.vocab_size, int(wanted.max()) + 1)
        lengthen(decoder, self.config.vocab_size)
        decoder.weight[wanted], decoder.bias[wanted] = weight, bias
        return "".join(tokens[row] for row in wanted.tolist())

    def get_output_embeddings(self) -> nn.Linear:
        """The linear layer that predicts characters."""
        return self.mlm.decoder


@dataclass
class GlyphCRMForPreTrainingOutput(ModelOutput):
    """Output of `GlyphCRMForPreTraining`."""

    loss: Tensor | None = None  # mlm_loss + nsp_loss, of those that have labels
    mlm_loss: Tensor | None = None  # mean over the masked positions
    nsp_loss: Tensor | None = None  # mean over the pairs
    prediction_logits: Tensor | None = None  # (B, L, vocab_size), or (M, vocab_size), see `logits_and_loss`
    seq_relationship_logits: Tensor | None = None  # (B, 2), or (S, 2) of a packed row of S sequences
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class GlyphCRMForPreTraining(_MaskedLM):
    """Masked language modelling and next-sentence prediction."""

    accepts_loss_kwargs = False  # two means with different counts: see PretrainingObjective
    parts: ClassVar = {"mlm": MaskedLMHead, "nsp": NextSentenceHead}
    nsp: NextSentenceHead

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        glyph_ids: Tensor | None = None,
        glyph_index: Tensor | None = None,
        labels: Tensor | None = None,
        prediction_index: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **kwargs: Any,
    ) -> GlyphCRMForPreTrainingOutput:
        """As `GlyphCRMModel.forward`, with int64 labels.

        Those of characters are `labels` ``(B, L)``, -100 where none is, at flat positions `prediction_index` ``(M,)``
        (see `logits_and_loss`); `next_sentence_label` ``(B,)`` is 0 when B follows A, 1 when it does not, -100 for a
        pair that does not count. A packed row of S sequences has `next_sentence_label` ``(S,)``.
        """
        form = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, glyph_ids, glyph_index)
        outputs = self.glyphcrm(*form, return_dict=True, **kwargs)
        logits, mlm_loss = self.logits_and_loss(outputs.last_hidden_state, labels, prediction_index=prediction_index)
        first = first_states(outputs.last_hidden_state, attention_mask, kwargs.get("cu_seq_lens_q"))
        nsp_logits = self.nsp(first)
        nsp_loss = None if next_sentence_label is None else mean_over_rows(nsp_logits, next_sentence_label)
        losses = [loss for loss in (mlm_loss, nsp_loss) if loss is not None]
        loss = torch.stack(losses).sum() if losses else None
        recorded = (outputs.hidden_states, outputs.attentions)
        return GlyphCRMForPreTrainingOutput(loss, mlm_loss, nsp_loss, logits, nsp_logits, *recorded)


class GlyphCRMForMaskedLM(_MaskedLM):
    """Masked language modelling alone; `labels` and `prediction_index` as in `GlyphCRMForPreTraining`."""

    parts: ClassVar = {"mlm": MaskedLMHead}
    output_class = MaskedLMOutput


class GlyphCRMForNextSentencePrediction(GlyphCRMHead):
    """Next-sentence prediction alone; `labels` ``(B,)`` are 0 when B follows A, 1 when it does not."""

    accepts_loss_kwargs = False
    parts: ClassVar = {"nsp": NextSentenceHead}
    nsp: NextSentenceHead
    reads_first_token = True
    output_class = NextSentencePredictorOutput

    def logits_and_loss(self, states: Tensor, labels: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As in the base class; the loss is the mean over the pairs."""
        logits = self.nsp(states)
        return logits, None if labels is None else mean_over_rows(logits, labels)


class _Classification(GlyphCRMHead):
    """One linear layer, and the loss that transformers has for the task."""

    parts: ClassVar = {"classifier": LinearHead}
    classifier: LinearHead

    def logits_and_loss(self, states: Tensor, labels: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As in the base class; the loss is transformers'."""
        logits = self.classifier(states)
        if labels is None:
            return logits, None
        # Of the two names of logits each loss takes its own.
        return logits, self.loss_function(
            logits=logits, pooled_logits=logits, labels=labels, config=self.config, **kwargs
        )


class GlyphCRMForSequenceClassification(_Classification):
    """One linear layer on the hidden state of [CLS], without a pooler, as in the paper.

    `labels` ``(B,)`` are classes (or targets, see `config.problem_type`).
    """

    reads_first_token = True
    output_class = SequenceClassifierOutput


class GlyphCRMForTokenClassification(_Classification):
    """One linear layer on every character's hidden state, without a CRF, as in the paper.

    `labels` ``(B, L)`` are tags, -100 where none is.
    """

    output_class = TokenClassifierOutput


class GlyphCRMForQuestionAnswering(GlyphCRMHead):
    """Extractive question answering: for every character how well an answer starts there, and how well it ends."""

    parts: ClassVar = {"span": partial(LinearHead, outputs=2)}
    span: LinearHead

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        glyph_ids: Tensor | None = None,
        glyph_index: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """As `GlyphCRMModel.forward`; logits are ``(B, L)``, the least number at padding.

        `start_positions` and `end_positions` ``(B,)`` int64 are the first and the last token of the answers; one
        outside of the sequence counts for nothing. The loss is the mean of both cross-entropies.

        Raises `ValueError` for these beside a row that the caller has packed: answers are looked for in a sequence.
        """
        if start_positions is not None and kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError("a packed row has one softmax for all its sequences; give them as a padded batch")
        form = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, glyph_ids, glyph_index)
        outputs = self.glyphcrm(*form, return_dict=True, **kwargs)
        logits = self.span(outputs.last_hidden_state)
        if attention_mask is not None and attention_mask.dim() == 2:
            logits = logits.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.finfo(logits.dtype).min)
        start, end = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start, end, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(loss, start, end, outputs.hidden_states, outputs.attentions)


class GlyphCRMForMultipleChoice(GlyphCRMHead):
    """Which of several sequences is the right one: one linear layer on the hidden state of each one's [CLS]."""

    accepts_loss_kwargs = False
    parts: ClassVar = {"choice": partial(LinearHead, outputs=1)}
    choice: LinearHead
    reads_first_token = True

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        glyph_ids: Tensor | None = None,
        glyph_index: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """As `GlyphCRMModel.forward`, with each ``(B, L)`` now ``(B, C, L)`` for C choices; logits are ``(B, C)``.

        A character that stands in several choices is encoded once. `labels` ``(B,)`` int64 are the right choices, -100
        for a question that does not count; the loss is the mean over the others. Recorded states are ``(B * C, L, d)``.

        Raises `ValueError` for a batch without choices, and for a row that the caller has packed.
        """
        tokens = next((x for x in (glyph_index, input_ids, inputs_embeds) if x is not None), None)
        if tokens is None or tokens.dim() != (3 if tokens is not inputs_embeds else 4):
            found = "nothing" if tokens is None else f"shape {tuple(tokens.shape)}"
            raise ValueError(f"choices come as (batch, choices, length), not {found}")
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError("a packed row does not tell which of its sequences are the choices of one question")
        of_tokens = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        rows = (None if x is None else x.flatten(0, 1) for x in of_tokens)
        index = None if glyph_index is None else glyph_index.flatten(0, 1)
        outputs = self.glyphcrm(*rows, glyph_ids, index, self.reads_first_token, return_dict=True, **kwargs)
        logits = self.choice(outputs.first_states).view(tokens.shape[:2])
        loss = None if labels is None else mean_over_rows(logits, labels)
        return MultipleChoiceModelOutput(loss, logits, outputs.hidden_states, outputs.attentions)


# Every model with a head, by the name of the transformers Auto class that makes it.
HEADS: dict[str, type[GlyphCRMHead]] = {
    "AutoModelForPreTraining": GlyphCRMForPreTraining,
    "AutoModelForMaskedLM": GlyphCRMForMaskedLM,
    "AutoModelForNextSentencePrediction": GlyphCRMForNextSentencePrediction,
    "AutoModelForSequenceClassification": GlyphCRMForSequenceClassification,
    "AutoModelForTokenClassification": GlyphCRMForTokenClassification,
    "AutoModelForQuestionAnswering": GlyphCRMForQuestionAnswering,
    "AutoModelForMultipleChoice": GlyphCRMForMultipleChoice,
}
