"""What a model says of one text, by the kind of its head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glyphcrm.checkpoint import load_checkpoint
from glyphcrm.config_file import architecture_of, read_config
from glyphcrm.errors import UserError, listed
from glyphcrm.finetuning.encoding import Feature, encode
from glyphcrm.finetuning.models import CLASSIFIERS, TAGGERS, Reading, load_bert_for_masked_lm, load_finetuned
from glyphcrm.finetuning.prediction import OUTSIDE, collator_for, predict
from glyphcrm.modeling import GlyphCRMForMaskedLM
from glyphcrm.modeling.heads import HEADS
from glyphcrm.tasks import Kind, TaggedExample, TextExample
from glyphcrm.tasks.readers import BIO_TAG

MASKS = ("[MASK]", "▢")
FILLERS = {HEADS[auto_class].__name__ for auto_class in ("AutoModelForPreTraining", "AutoModelForMaskedLM")}
BERT_FILLERS = {"BertForPreTraining", "BertForMaskedLM"}
NO_ANSWER = re.compile(r"##.+|\[.+\]")  # of a BERT's vocabulary: ##ing, [unused1]
SHOWN_LABELS = 5


@dataclass(frozen=True)
class Name:
    """A name in a text: its range of code points, and what it names."""

    start: int
    end: int
    text: str
    label: str


@dataclass(frozen=True)
class Answer:
    """What is said of a text: names in it, or choices: labels with probabilities, for each mask or of the whole."""

    text: str  # as given, or filled in
    as_json: dict[str, Any]
    names: tuple[Name, ...] = ()
    labels: tuple[str, ...] = ()  # all that names can have
    choices: tuple[tuple[tuple[str, float], ...], ...] = ()
    note: str = ""  # what the user must know, such as a text that was cut


class Answerer:
    """A model with its tokenizer, which is asked by calling it.

    Attributes:
        labels: the names of the head's classes, in their order; of a masked-LM head they mean nothing.
        longest: how many tokens it reads at once.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        labels: Any = model.config.id2label
        self.labels = tuple(str(labels[i]) for i in sorted(labels))
        self.longest = model.config.max_position_embeddings

    def __call__(self, text: str, where: str) -> Answer:
        """Return what the model says of a text; errors name it as `where`."""
        raise NotImplementedError

    def check(self, text: str, where: str) -> None:
        """Raise `UserError` for a text without a character that is read."""
        if not self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise UserError(f"{where}: holds no character that is read, only white space or the like")


def load_answerer(
    directory: Path, top: int, any_character: bool = False, counts: Mapping[str, int] | None = None
) -> Answerer:
    """Load a saved model, and return what asks it; the kind of answer is that of its head.

    `top` is the number of characters for each mask; with `any_character` they are of all that the model reads,
    those that it was not trained to predict as likely as their pictures and `counts` say (see `extend_decoder`).

    Raises:
        UserError: no model there, a damaged one, one without such a head or whose head gives a number, or one that
            cannot predict any character.
            Asking raises it for a text without a character or a mask that the model could read.
    """
    name = architecture_of(read_config(directory))
    if any_character and name not in FILLERS:
        raise UserError(f"{directory}: only a GlyphCRM that fills masks can predict any character; give one")
    if name in FILLERS:
        model, tokenizer = load_checkpoint(directory, GlyphCRMForMaskedLM, dtype=torch.float32)
        if any_character:
            model.eval().extend_decoder(counts=counts)
        return Filler(model.eval(), tokenizer, top)
    if name in BERT_FILLERS:
        return Filler(*load_bert_for_masked_lm(directory), top)
    if name in {model_class.__name__ for model_class in CLASSIFIERS.values()}:
        classifier = Classifier(*load_finetuned(directory), directory)
        check_labels(directory, classifier)
        return classifier
    if name in {model_class.__name__ for model_class in TAGGERS.values()}:
        tagger = Tagger(*load_finetuned(directory), directory)
        check_tags(directory, tagger.labels)
        return tagger
    raise UserError(
        f"{directory}: holds {name or 'nothing'}, which neither labels texts nor fills masks; "
        "give a pre-trained GlyphCRM or a model that `glyphcrm finetune --keep-model best` has kept"
    )


def check_labels(directory: Path, classifier: Classifier) -> None:
    """Raise `UserError` for a model that gives a number: it has one label, of which any text is wholly sure."""
    problem = classifier.model.config.problem_type
    if problem == "regression" or (len(classifier.labels) == 1 and problem != "multi_label_classification"):
        raise UserError(
            f"{directory}: gives a number, not labels; ask it with transformers' pipeline('text-classification', ..., "
            "function_to_apply='none')"
        )


def check_tags(directory: Path, tags: Iterable[str]) -> None:
    """Raise `UserError` for a model of other tags than O, B-x and I-x: what they mean is not known here."""
    if others := [tag for tag in tags if not BIO_TAG.fullmatch(tag)]:
        raise UserError(
            f"{directory}: its tags are no names' ({listed(others)}); give a model whose tags are O, B-x and I-x"
        )


class FineTuned(Answerer):
    """A fine-tuned model, which reads as it did in training."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
        super().__init__(model, tokenizer)
        try:
            self.reading = Reading.of(model.config)
        except UserError as error:
            raise UserError(f"{directory / 'config.json'}: {error}") from None


class Classifier(FineTuned):
    """Labels of a text, or of two with a tab between them, and how probable each is."""

    @torch.no_grad()
    def __call__(self, text: str, where: str) -> Answer:
        """Return all labels, the best ones first; those of a model with several at once are independent."""
        first, tab, second = text.partition("\t")
        for part in (first, second) if tab else (first,):
            self.check(part, where)
        feature = self.read(first, second if tab else None)
        batch = collator_for(self.model)([feature])
        del batch["labels"]
        logits = self.model(**{key: value.to(self.model.device) for key, value in batch.items()}).logits[0].float()
        several = self.model.config.problem_type == "multi_label_classification"
        shares = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        ranked = tuple(sorted(zip(self.labels, shares, strict=True), key=lambda pair: -pair[1]))
        read = "the first" if tab or self.reading.truncation == "head" else "at its beginning and its end"
        note = f"too long: {read} {self.reading.max_length} tokens were read" if feature.truncated else ""
        as_json = {"text": text, "label": ranked[0][0], "probabilities": dict(ranked)}
        return Answer(text, as_json, choices=(ranked[:SHOWN_LABELS],), note=note)

    def read(self, text: str, pair: str | None = None) -> Feature:
        """Return what the model reads of a text, or of two: as in training, so of a pair the head."""
        reading = self.reading if pair is None else replace(self.reading, truncation="head")
        kind = Kind.SENTENCE if pair is None else Kind.PAIR
        (feature,) = encode(
            self.tokenizer, [TextExample(text, self.labels[0], pair)], kind, self.labels, **asdict(reading)
        )
        return feature


class Tagger(FineTuned):
    """Names in a text; a long one is read in windows."""

    def __call__(self, text: str, where: str) -> Answer:
        """Return the names, in their order."""
        self.check(text, where)
        example = TaggedExample(tuple(text), (OUTSIDE,) * len(text))
        (tags,) = predict(self.model, self.tokenizer, [example], Kind.TAGGING, self.labels, self.reading.max_length)
        names = tuple(Name(start, end, text[start:end], label) for start, end, label in spans(tags))
        labels = tuple(sorted({tag.partition("-")[2] for tag in self.labels if tag != OUTSIDE}))
        return Answer(text, {"text": text, "names": [asdict(name) for name in names]}, names, labels)


def spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return start, end and label of the entities in BIO tags; an I- without its B- begins one."""
    found: list[tuple[int, int, str]] = []
    for place, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if tag == OUTSIDE:
            continue
        if prefix == "I" and found and found[-1][1:] == (place, label):
            found[-1] = (found[-1][0], place + 1, label)
        else:
            found.append((place, place + 1, label))
    return found


class Filler(Answerer):
    """Characters for the masks in a text, each by itself."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, top: int) -> None:
        super().__init__(model, tokenizer)
        ids = torch.arange(model.config.vocab_size, device=model.device)
        known = model.predicts(ids) if isinstance(model, GlyphCRMForMaskedLM) else ids < len(tokenizer)
        if not isinstance(model, GlyphCRMForMaskedLM):  # pieces of words, and places kept for tokens to come
            tokens = tokenizer.convert_ids_to_tokens(ids[known].tolist())
            known[[i for i, token in enumerate(tokens) if NO_ANSWER.fullmatch(str(token))]] = False
        known[[i for i in tokenizer.all_special_ids if i < len(known)]] = False  # [UNK] fills no gap
        self._answers = ids[known]
        self.top = min(top, len(self._answers))

    @torch.no_grad()
    def __call__(self, text: str, where: str) -> Answer:
        """Return the text with the best characters, and the `top` best ones for each mask."""
        mask = str(self.tokenizer.mask_token)
        pieces = text.replace(MASKS[1], mask).split(mask)
        if len(pieces) == 1:
            raise UserError(f"{where}: has no {' or '.join(MASKS)}; this model fills masks; a fine-tuned one labels")
        batch = self.tokenizer(mask.join(pieces), return_tensors="pt")
        ids = batch["input_ids"]
        if ids.shape[1] > self.longest:
            raise UserError(f"{where}: {ids.shape[1]} tokens; the model reads {self.longest} at once, shorten the text")
        positions = (ids[0] == self.tokenizer.mask_token_id).nonzero().squeeze(1)
        choices = self.best(self.model(**batch).logits[0, positions])
        filled = pieces[0] + "".join(row[0][0] + piece for row, piece in zip(choices, pieces[1:], strict=True))
        return Answer(filled, {"text": text, "filled": filled, "masks": choices}, choices=choices)

    def best(self, logits: torch.Tensor) -> tuple[tuple[tuple[str, float], ...], ...]:
        """Return of n places, by logits ``(n, V)``, the `top` best characters each, and how probable they are.

        Special tokens are no answers, though they have a share in what is probable.
        """
        shares, places = logits.float().softmax(-1)[:, self._answers].topk(self.top)
        rows = map(self.tokenizer.convert_ids_to_tokens, self._answers[places].tolist())
        return tuple(tuple(zip(row, of_row, strict=True)) for row, of_row in zip(rows, shares.tolist(), strict=True))
