"""Scores, by scikit-learn and seqeval."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

from glyphcrm.errors import UserError
from glyphcrm.finetuning.unseen import OUTSIDE, settled, speakers
from glyphcrm.tasks import Example, Kind, TaggedExample

Prediction = str | tuple[str, ...]


def check_installed() -> None:
    """Refuse to start a run whose end could not be scored.

    Raises:
        UserError: a package of the extra "finetune" is missing.
    """
    missing = [name for name in ("sklearn", "seqeval", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{", ".join(missing)}: not installed; pip install "glyphcrm[finetune]"')


def score(kind: Kind, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return the scores of `predictions`, each in [0, 1].

    For texts and pairs: `accuracy`, and `macro_f1`, the mean over the labels that `examples` or `predictions` hold: one
    that is neither there nor predicted says nothing of a model. For tagging: entity-level micro-averaged `precision`,
    `recall` and `f1`; an entity counts when its type and both of its ends are right. Tags are read strictly as IOB2:
    an I- that continues nothing of its type belongs to no entity, in gold tags and in predicted ones. What no model can
    see, such as a blank within a name, decides nothing (`settled`): neither the end of an entity, nor one of blanks
    alone. Where gold has none but of these, and none was predicted, all is right.

    Raises:
        ValueError: as many predictions as examples, or as many tags as lines, are needed.
    """
    if kind is Kind.TAGGING:
        average = _seqeval_report(examples, predictions)["micro avg"]
        if not average["support"] and _none_but_unseen(examples, predictions):
            return dict.fromkeys((key.removesuffix("-score") for key in _ENTITY_SCORES), 1.0)
        return {key.removesuffix("-score"): float(average[key]) for key in _ENTITY_SCORES}
    from sklearn.metrics import accuracy_score, f1_score

    truth = [example.answer for example in examples]
    if len(truth) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(truth)} examples")
    return {
        "accuracy": float(accuracy_score(truth, predictions)),
        "macro_f1": float(f1_score(truth, predictions, average="macro", zero_division=0)),
    }


def entity_scores(examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """Return, for each type of entity, `precision`, `recall`, `f1` as in `score`, and how many there are, `support`."""
    report = _seqeval_report(examples, predictions)
    return {
        name: {key.removesuffix("-score"): float(values[key]) for key in (*_ENTITY_SCORES, "support")}
        for name, values in report.items()
        if not name.endswith(" avg")
    }


_ENTITY_SCORES = ("precision", "recall", "f1-score")  # as seqeval calls them


def _none_but_unseen(examples: Sequence[Example], predictions: Sequence[Prediction]) -> bool:
    tagged = [example for example in examples if isinstance(example, TaggedExample)]
    seen = (tag for example in tagged for tag in settled(example.tags, speakers(example.characters)))
    predicted = (tag for tags in predictions for tag in tags)
    return any(set(example.tags) != {OUTSIDE} for example in tagged) and {*seen, *predicted} == {OUTSIDE}


def _seqeval_report(examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    tagged = [example for example in examples if isinstance(example, TaggedExample)]
    if [len(example.tags) for example in tagged] != [len(tags) for tags in predictions]:
        raise ValueError("every line of every sentence needs one predicted tag")
    follows = [speakers(example.characters) for example in tagged]
    truth = [list(settled(example.tags, lines)) for example, lines in zip(tagged, follows, strict=True)]
    guesses = [list(settled(tags, lines)) for tags, lines in zip(predictions, follows, strict=True)]
    with warnings.catch_warnings():
        # Where there is no entity at all, its macro average, which is not looked at, is a mean over nothing.
        warnings.simplefilter("ignore", RuntimeWarning)
        report: dict[str, dict[str, Any]] = classification_report(
            truth, guesses, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
        )
    return report
