"""The models of the page, and which of them answer the same question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import torch

from glyphcrm.answers import Answerer, Classifier, Filler, Tagger, load_answerer
from glyphcrm.checkpoint import load_atlas
from glyphcrm.config_file import read_config
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.han import is_han
from glyphcrm.modeling import GlyphCRMForMaskedLM, GlyphCRMPreTrainedModel

LONGEST = 2000  # characters of a text
SHOWN = 5  # characters for a mask
PRETRAINED = "pre-trained"

_OF_A_RUN = re.compile(r"model|seed-\d+")  # directories in the one that the user named


@dataclass(frozen=True)
class Models:
    """What the page can ask, by the names that it shows."""

    filler: Filler
    atlas: GlyphAtlas  # of `filler`
    tasks: Mapping[str, Classifier | Tagger] = field(default_factory=dict)
    berts: Mapping[str, Answerer] = field(default_factory=dict)  # by the name of the GlyphCRM beside each

    @property
    def all(self) -> dict[str, Answerer]:
        """Every GlyphCRM."""
        return {PRETRAINED: self.filler, **self.tasks}

    @property
    def glyphcrm(self) -> GlyphCRMPreTrainedModel:
        """The pre-trained model, whose vectors say what is alike."""
        return cast(GlyphCRMPreTrainedModel, self.filler.model)

    @cached_property
    def predicted(self) -> list[str]:
        """The tokens that `filler` can answer with."""
        model = cast(GlyphCRMForMaskedLM, self.filler.model)
        can_be = model.predicts(torch.arange(len(self.atlas)))
        return [token for token, is_predicted in zip(self.atlas.tokens, can_be.tolist(), strict=True) if is_predicted]

    def predicted_han(self) -> list[str]:
        """The Chinese characters of the vocabulary, which a BERT of the same data knows, too."""
        return [token for token in self.predicted if len(token) == 1 and is_han(ord(token))]


def load_models(model: Path, task_models: Sequence[Path] = (), berts: Sequence[Path] = ()) -> Models:
    """Load a pre-trained GlyphCRM, fine-tuned ones, and BERTs that answer the same as one of these.

    Raises:
        UserError: no model there, a damaged one, one with another head than is needed, or a BERT with nothing beside
            it.
    """
    filler = _load(model, "GlyphCRM")
    if not isinstance(filler, Filler):
        raise UserError(
            f"--model {model}: does not fill masks; give a pre-trained GlyphCRM, a fine-tuned one goes to --task-model"
        )
    tasks: dict[str, Classifier | Tagger] = {}
    for directory in task_models:
        task = _load(directory, "GlyphCRM")
        if not isinstance(task, Classifier | Tagger):
            raise UserError(f"--task-model {directory}: labels nothing; give one that `glyphcrm finetune` has kept")
        tasks[_name(directory, tasks)] = task
    models = Models(filler, load_atlas(model), tasks)
    beside: dict[str, Answerer] = {}
    for directory in berts:
        bert = _load(directory, "BERT")
        name = next((name for name, other in models.all.items() if _answer_the_same(bert, other)), None)
        if name is None:
            raise UserError(
                f"--bert {directory}: its labels ({', '.join(bert.labels)}) are of no --task-model; give the GlyphCRM "
                "that was fine-tuned on the same task"
            )
        if name in beside:
            raise UserError(f"--bert {directory}: a BERT stands beside the model {name!r} already; leave one out")
        beside[name] = bert
    return Models(filler, models.atlas, tasks, beside)


def bounded(text: str, longest: int = LONGEST) -> str:
    """Return a text of the page, in which a tab separates no pair; raise `UserError` if it is empty or too long."""
    if len(text) > longest:
        raise UserError(f"the text has {len(text):,} characters; at most {longest:,} are read here, shorten it")
    if not text.strip():
        raise UserError("there is no text yet; type some, or click an example")
    return text.replace("\t", " ")


def _load(directory: Path, kind: str) -> Answerer:
    read_config(directory, (kind,))
    return load_answerer(directory, SHOWN)


def _answer_the_same(one: Answerer, other: Answerer) -> bool:
    return type(one) is type(other) and (isinstance(one, Filler) or one.labels == other.labels)


def _name(directory: Path, taken: Mapping[str, object]) -> str:
    """Return the last part of a path that the user chose, or the whole path where that is taken."""
    name = next((part for part in reversed(directory.parts) if not _OF_A_RUN.fullmatch(part)), "")
    return name if name and name not in (*taken, PRETRAINED) else str(directory)
