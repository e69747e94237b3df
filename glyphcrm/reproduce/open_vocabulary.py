"""Characters that the decoder has no learned row of: where the right one stands among all that the model reads."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glyphcrm.checkpoint import load_checkpoint
from glyphcrm.data.sentence_pairs import split_documents
from glyphcrm.data.sentences import split_sentences
from glyphcrm.glyphs.han import is_han
from glyphcrm.modeling import GlyphCRMForMaskedLM
from glyphcrm.modeling.backend import on_accelerator
from glyphcrm.modeling.look_alikes import encoded
from glyphcrm.modeling.open_decoder import fitted_rows, picture_features
from glyphcrm.pretraining.corpus import Text
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.tokens import CLS_ID, MASK_ID, SEP_ID
from glyphcrm.vocabulary import count_characters

HELD_OUT, NEVER_PREDICTED = "held out of the fit", "never predicted"
PICTURES, NEAREST, MEAN, CHANCE = "rows from pictures", "nearest picture", "mean row", "chance"
BOTH, FREQUENCY, LEARNED = "rows from pictures and frequency", "frequency alone", "learned rows"
CHARACTERS = 1000  # held out at most, and a fifth of those that may be
PLACES = 5  # looked at, of each character; those that are drawn to be held out have as many
COMMON_PLACES = 1000  # of any characters, to see what is lost there
SHORTEST, LONGEST = 8, 30  # characters of a sentence
BATCH = 128
TIE = 1e-5  # logits nearer to each other are equal but for rounding

Ids = NDArray[np.integer]
Place = tuple[Ids, int]  # of a sentence, and the position that is masked
Score = Callable[[Tensor], Tensor]  # from states (n, d) to what is said of each candidate (n, N)


def open_prediction(
    directory: Path, sentences: Iterable[str], counts: Mapping[str, int], characters: str | None = None
) -> dict[str, Any]:
    """Mask characters in sentences, and rank the right one among all characters that the model reads.

    Asked for are characters that are held out of the fit, whose learned rows the model then does without, and those
    that it has never predicted. Each guess fills in the missing rows in its own way; of the characters that it ties
    with the right one, half count as better. A place is one masked character; each character has at most 5.

    Args:
        directory: of a saved model with a decoder.
        sentences: each short enough for the model; those of fewer than 8 characters are left out.
        counts: how often each character stands in other text, best the model's training text.
        characters: those to ask for alone, as far as the model reads them; None for all that are never predicted, and
            of the others a fifth of the Chinese ones with 5 places or more, drawn at random, at most 1,000.

    Returns:
        "candidates": how many; "groups": group -> "characters", "places", and "guesses": guess -> median rank,
        recall at 10 and at 100, and the median rank among those without a learned row; "common": the loss at 1,000
        places of any characters that are predicted, before `extend_decoder`, after it, and after it with the counts.
        What the sentences have no place for is left out.

    Raises:
        UserError: no such model.
    """
    model, tokenizer = load_checkpoint(directory, GlyphCRMForMaskedLM, heads=True, dtype=torch.float32)
    on_accelerator(model).eval()
    found = _Sample.of(map(tokenizer.encode_characters, sentences))
    rows = torch.tensor([row for row, token in enumerate(tokenizer.tokens) if len(token) == 1])
    is_predicted = model.predicts(torch.arange(len(tokenizer.tokens), device=model.device)).cpu()
    readable = None if characters is None else "".join(char for char in characters if char in model.vocabulary)
    given = None if readable is None else model.rows_of(readable).unique()
    if given is None:
        han = (row for row in rows[is_predicted[rows]].tolist() if is_han(ord(tokenizer.tokens[row])))
        eligible = [row for row in han if len(found.places.get(row, ())) >= PLACES]
        count = min(CHARACTERS, len(eligible) // 5)
        held = sorted(np.random.default_rng(0).choice(eligible, count, replace=False).tolist()) if count else []
    else:
        held = given[is_predicted[given]].tolist()
    never = rows[~is_predicted[rows]] if given is None else given[~is_predicted[given]]
    asked = {
        name: [row for row in wanted if row in found.places]
        for name, wanted in ((HELD_OUT, held), (NEVER_PREDICTED, never.tolist()))
    }
    groups = {}
    if any(asked.values()):
        decoders = _Decoders(model, rows, held, torch.tensor([counts.get(tokenizer.tokens[row], 0) for row in rows]))
        for name, wanted in asked.items():
            if places := [place for row in wanted for place in found.places[row]]:
                right = torch.tensor([int(ids[at]) for ids, at in places])
                guesses = decoders.guesses(_states(model, places), right)
                groups[name] = {"characters": len(wanted), "places": len(places), "guesses": guesses}
    known = [place for place in found.common if is_predicted[place[0][place[1]]]]
    common = _losses(model, known, counts) if known and not is_predicted[rows].all() else {}
    return {"candidates": len(rows), "groups": groups, "common": {"places": len(known), **common}}


def table(result: dict[str, Any]) -> str:
    """Return the groups of an `open_prediction` as a table in Markdown."""
    lines = ["| | median rank | among the new ones | in the first 10 | in the first 100 |", "|---|---:|---:|---:|---:|"]
    for name, group in result["groups"].items():
        lines.append(f"| **{name}** ({group['characters']:,} characters, {group['places']:,} places) | | | | |")
        lines += [
            f"| {guess} | {of['median_rank']:,.0f} | {of['median_rank_among_new']:,.0f} | {of['recall_at_10']:.1%} | "
            f"{of['recall_at_100']:.1%} |"
            for guess, of in group["guesses"].items()
        ]
    return "\n".join(lines)


def held_out_sentences(data: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Return the sentences of the documents that pre-training on `data` validates with, and what the others count.

    Sentences are of 30 characters at most; of the other documents come the counts of characters.

    `data` are files or patterns, as for pretrain.py; none for the demo corpus.
    """
    options = PretrainOptions(data=list(data))
    text = Text(options)
    _, found = split_documents(sum(1 for _ in text.documents()), options.held_out)
    held_out, sentences = set(found.tolist()), list[str]()

    def trained() -> Iterator[str]:
        for number, document in enumerate(text.documents()):
            if number in held_out:
                sentences.extend(sentence for paragraph in document for sentence in split_sentences(paragraph, LONGEST))
            else:
                yield from document

    counts = count_characters(trained())  # which also finds the sentences: no more of the text is in memory
    return sentences, counts


@dataclass
class _Sample:
    """Places in a text, drawn at random, the same ones for the same text."""

    places: dict[int, list[Place]] = field(default_factory=dict)  # by character
    common: list[Place] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, sentences: Iterable[Ids]) -> _Sample:
        sample, rng, read = cls(), np.random.default_rng(0), 0
        for ids in sentences:
            if len(ids) < SHORTEST:
                continue
            for at, row in enumerate(ids.tolist()):
                sample.counts[row] += 1
                _draw(sample.places.setdefault(row, []), (ids, at), sample.counts[row], PLACES, rng)
            read += 1
            _draw(sample.common, (ids, int(rng.integers(len(ids)))), read, COMMON_PLACES, rng)
        return sample


def _draw(kept: list[Place], place: Place, number: int, most: int, rng: np.random.Generator) -> None:
    """Keep each of `number` places so far with the same probability."""
    if len(kept) < most:
        kept.append(place)
    elif (i := int(rng.integers(number))) < most:
        kept[i] = place


class _Decoders:
    """The ways to fill in the rows that are missing; `counts` ``(n,)`` are those of the `rows` ``(n,)``."""

    def __init__(self, model: GlyphCRMForMaskedLM, rows: Tensor, held: Collection[int], counts: Tensor) -> None:
        decoder, device = model.mlm.decoder, model.device
        self.rows, can_be = rows, model.predicts(rows.to(device)).cpu()
        self.is_new = ~can_be | torch.isin(rows, torch.tensor(list(held), dtype=torch.int64))
        self.is_lost = can_be & self.is_new
        self.index = torch.full((int(rows.max()) + 1,), -1).index_copy_(0, rows, torch.arange(len(rows)))
        vectors = encoded(model, rows)
        features = picture_features(vectors)
        learned = rows[~self.is_new].to(device)
        weight, bias = decoder.weight[learned].detach(), decoder.bias[learned].detach()
        look = F.normalize(vectors.vector - vectors.vector[~self.is_new].mean(0), dim=1)
        pieces = look[self.is_new].split(BATCH)
        nearest = torch.cat([(piece @ look[~self.is_new].T).argmax(1) for piece in pieces])
        count, counts_of = int(self.is_new.sum()), (counts[~self.is_new], counts[self.is_new])
        known, new = features[~self.is_new], features[self.is_new]
        fitted = fitted_rows(weight, bias, known, new)
        self.scores: dict[str, Score] = {
            PICTURES: self._filled(weight, bias, *fitted),
            BOTH: self._filled(weight, bias, *fitted_rows(weight, bias, known, new, counts_of)),
            NEAREST: self._filled(weight, bias, weight[nearest], bias[nearest]),
            MEAN: self._filled(weight, bias, weight.mean(0).expand(count, -1), bias.mean().expand(count)),
            FREQUENCY: _constant(counts.float().to(device)),
            CHANCE: _constant(torch.zeros(len(rows), device=device)),
        }
        rest_weight, rest_bias = (part[~self.is_lost[self.is_new]] for part in fitted)
        with_lost = rows[can_be].to(device)
        all_learned = decoder.weight[with_lost].detach(), decoder.bias[with_lost].detach()
        self.with_learned = self._filled(*all_learned, rest_weight, rest_bias, can_be)

    def _filled(
        self, weight: Tensor, bias: Tensor, new_weight: Tensor, new_bias: Tensor, is_there: Tensor | None = None
    ) -> Score:
        is_there = (~self.is_new if is_there is None else is_there).to(weight.device)
        both, constant = weight.new_zeros(len(self.rows), weight.shape[1]), bias.new_zeros(len(self.rows))
        both[is_there], both[~is_there], constant[is_there], constant[~is_there] = weight, new_weight, bias, new_bias
        return lambda states: states @ both.T + constant

    def guesses(self, states: Tensor, right: Tensor) -> dict[str, dict[str, float]]:
        """Return what each comes to, for states ``(n, d)`` and the atlas rows ``(n,)`` that stood there."""
        own = self.index[right]
        scores = dict(self.scores)
        if self.is_lost[own].all():
            scores[LEARNED] = self.with_learned
        return {name: self._ranked(score, states, own.to(states.device)) for name, score in scores.items()}

    def _ranked(self, score: Score, states: Tensor, own: Tensor) -> dict[str, float]:
        ranks, among_new = [], []
        is_new = self.is_new.to(states.device)
        for some, of_some in zip(states.split(BATCH), own.split(BATCH), strict=True):
            scored = score(some)
            ahead = scored - scored.gather(1, of_some.unsqueeze(1))
            better = (ahead > TIE).double() + 0.5 * (ahead.abs() <= TIE)
            ranks.append(better.sum(1) + 0.5)  # it ties with itself
            among_new.append(better[:, is_new].sum(1) + 0.5)
        rank = torch.cat(ranks)
        return {
            "median_rank": rank.median().item(),
            "recall_at_10": (rank <= 10).double().mean().item(),
            "recall_at_100": (rank <= 100).double().mean().item(),
            "median_rank_among_new": torch.cat(among_new).median().item(),
        }


def _constant(scores: Tensor) -> Score:
    return lambda states: scores.expand(len(states), -1)


@torch.no_grad()
def _states(model: GlyphCRMForMaskedLM, places: list[Place]) -> Tensor:
    """Return what the decoder reads at each place, when it alone is masked: ``(n, d)``."""
    device = model.device
    states = torch.empty(len(places), model.config.hidden_size, device=device)
    by_length = sorted(range(len(places)), key=lambda i: len(places[i][0]))
    for first in range(0, len(places), BATCH):
        some = by_length[first : first + BATCH]
        ids = torch.zeros(len(some), max(len(places[i][0]) for i in some) + 2, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for line, i in enumerate(some):
            sentence, at = places[i]
            tokens = [CLS_ID, *sentence.tolist(), SEP_ID]
            tokens[at + 1] = MASK_ID
            ids[line, : len(tokens)], mask[line, : len(tokens)] = torch.tensor(tokens), 1
        hidden = model.glyphcrm(ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        masked = hidden[torch.arange(len(some)), [places[i][1] + 1 for i in some]]
        states[some] = model.mlm.transform(masked)
    return states


def _losses(model: GlyphCRMForMaskedLM, places: list[Place], counts: Mapping[str, int]) -> dict[str, float]:
    """Return the loss at `places` as the model is, and when it predicts all that it reads, in two ways."""
    states = _states(model, places)
    right = torch.tensor([int(ids[at]) for ids, at in places], dtype=torch.int64, device=model.device)
    losses = {"loss": F.cross_entropy(model.mlm.decoder(states), right).item()}
    for name, known_counts in (("loss_extended", None), ("loss_extended_with_counts", counts)):
        extended = copy.deepcopy(model)
        extended.extend_decoder(counts=known_counts)
        losses[name] = F.cross_entropy(extended.mlm.decoder(states), right).item()
    return losses
