"""Characters replaced by look-alikes, and what the models say of the text before and after."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from glyphcrm.answers import Answer
from glyphcrm.errors import UserError
from glyphcrm.glyphs.look_alikes import look_alikes_from_atlas
from glyphcrm.modeling import nearest
from glyphcrm.web.models import Models, bounded

LONGEST = 200  # characters
CHOICES = 5  # look-alikes, of which one is drawn
ASKED = 60  # neighbours, of which some are no Chinese characters of the vocabulary


@dataclass(frozen=True)
class Attack:
    """A text with look-alikes in it, and the answers of each model to both texts."""

    before: str
    after: str  # of the same length
    answers: Mapping[str, tuple[Answer, Answer]]  # "GlyphCRM" and perhaps "BERT"


def attack(models: Models, name: str, text: str, count: int, source: str, seed: int) -> Attack:
    """Replace `count` Chinese characters of a text, or all of them if there are fewer, and ask the model `name`.

    Which ones, and by which of their five nearest look-alikes, depends on `seed` alone; look-alikes are of the
    vocabulary, so that what a BERT does not know is not what is measured. `source` is one of `SOURCES`.

    Raises `UserError`: the text is longer than 200 characters, or has none that could be replaced, or the model cannot
    read it.
    """
    text, known = bounded(text, LONGEST), models.predicted_han()
    draw, among = random.Random(seed), set(known)
    places = [i for i, char in enumerate(text) if char in among]
    if not places:
        raise UserError("the text has no Chinese character that could be replaced; type some, or click an example")
    chosen = draw.sample(places, min(count, len(places)))
    look_alikes = SOURCES[source](models, known, {text[i] for i in chosen})
    characters = list(text)
    for i in chosen:
        characters[i] = draw.choice(look_alikes[text[i]])
    after = "".join(characters)
    asked = {"GlyphCRM": models.all[name]} | ({"BERT": models.berts[name]} if name in models.berts else {})
    answers = {which: (answer(text, "the text"), answer(after, "the text")) for which, answer in asked.items()}
    return Attack(text, after, answers)


def _by_vectors(models: Models, known: list[str], wanted: Iterable[str]) -> dict[str, str]:
    among = set(known)
    found = {char: [other for other, _ in nearest(models.glyphcrm, char, ASKED)] for char in sorted(wanted)}
    return {char: "".join(filter(among.__contains__, others))[:CHOICES] or char for char, others in found.items()}


def _by_pictures(models: Models, known: list[str], wanted: Iterable[str]) -> dict[str, str]:
    return look_alikes_from_atlas(models.atlas, known, min(CHOICES, len(known) - 1), wanted=set(wanted))


SOURCES: dict[str, Callable[[Models, list[str], Iterable[str]], dict[str, str]]] = {
    "nearest for the model": _by_vectors,
    "fewest different pixels": _by_pictures,
}
