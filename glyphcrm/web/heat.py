"""Which strokes decide: for each pixel of ink, what it adds to the logarithm of an answer's probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from glyphcrm.answers import MASKS, Answerer, Classifier, Filler, Tagger
from glyphcrm.errors import UserError
from glyphcrm.glyphs.raster import IMAGE_SIZE, pack, unpack
from glyphcrm.modeling import GlyphCRMPreTrainedModel
from glyphcrm.modeling.hanglyph import GlyphVectors
from glyphcrm.web.models import bounded

LONGEST = 24  # characters: with `base` a minute on two cores
WINDOW, STRIDE = 8, 4  # pixels a side of what is erased at once, and from one to the next
BATCH = 64  # erased pictures at a time


@dataclass(frozen=True, eq=False)
class Heat:
    """A token and its picture; `heat` is 0 off the ink, and all over special tokens."""

    token: str
    picture: NDArray[np.uint8]  # (48, 48), ink 1
    heat: NDArray[np.float32]  # (48, 48), in nats; positive where the ink speaks for the answer


@dataclass(frozen=True, eq=False)
class HeatMap:
    """An answer, its probability, and what the tokens that are read have to do with it, [CLS] and [SEP] left out."""

    answer: str
    share: float
    tokens: tuple[Heat, ...]


@dataclass(frozen=True, eq=False)
class Question:
    """A text as a model reads it, and the answer whose probability is explained."""

    model: Any  # a GlyphCRM with a head
    ids: Tensor  # (L,) int64
    bitmaps: Tensor  # (L, 288) uint8, the pictures of the tokens
    shown: NDArray[np.bool_]  # (L,), whether a token is a character of the text
    log_shares: Callable[[Tensor], Tensor]  # the head's logits of B texts to (B, answers)
    answer: int

    def score(self, vectors: GlyphVectors, index: Tensor) -> Tensor:
        """Return the log-probabilities ``(B,)`` of the answer to texts, `index` ``(B, L)`` their rows in `vectors`."""
        logits = self.model(glyph_vectors=vectors, glyph_index=index).logits.float()
        return self.log_shares(logits)[:, self.answer]


def heat_map(answerer: Answerer, text: str, method: str) -> HeatMap:
    """Explain the best answer to a short text: of a model that fills masks the character at the first one.

    `method` is one of `METHODS`. Raises `UserError`: the text is longer than 24 characters or has no mask to fill, or
    the model finds names.
    """
    question, answer = _asked(answerer, bounded(text, LONGEST))
    heat = METHODS[method](question)
    with torch.no_grad():
        vectors = question.model.glyph_vectors(question.ids)
        share = question.score(vectors, _rows(question)).exp().item()
    pictures = unpack(question.bitmaps.cpu().numpy())
    names = answerer.tokenizer.convert_ids_to_tokens(question.ids.tolist())
    return HeatMap(answer, share, tuple(map(Heat, names[1:-1], pictures[1:-1], heat[1:-1])))


@torch.no_grad()
def occlusion(question: Question) -> NDArray[np.float32]:
    """Return ``(L, 48, 48)``: by how much the score falls when ink is erased, in windows of 8x8 pixels.

    A window with its corner at every fourth pixel of each picture is made blank, alone, and the text read again. Each
    pixel of its ink has an equal share in the fall; a pixel's heat is the mean over the windows that hold it.
    """
    model = question.model
    own = model.glyph_vectors(question.ids)
    whole = question.score(own, _rows(question)).item()
    pictures = unpack(question.bitmaps.cpu().numpy())
    heat, covered = np.zeros(pictures.shape), np.zeros(pictures.shape)
    corners = range(0, IMAGE_SIZE - WINDOW + 1, STRIDE)
    windows = [
        (token, slice(top, top + WINDOW), slice(left, left + WINDOW))
        for token in np.flatnonzero(question.shown).tolist()
        for top in corners
        for left in corners
    ]
    for window in windows:
        covered[window] += 1
    inked = [window for window in windows if pictures[window].any()]
    parts = [inked[start : start + BATCH] for start in range(0, len(inked), BATCH)]
    for part in tqdm(parts, "erasing", delay=1.0, leave=False):
        erased = pictures[[token for token, _, _ in part]].copy()
        for picture, (_, rows, columns) in zip(erased, part, strict=True):
            picture[rows, columns] = 0
        made = model.glyph_vectors(pack(erased))
        vectors = GlyphVectors(*(torch.cat(both) for both in zip(own, made, strict=True)))
        index = _rows(question).repeat(len(part), 1)
        for i, (token, _, _) in enumerate(part):
            index[i, token] = len(question.ids) + i
        for window, score in zip(part, question.score(vectors, index).tolist(), strict=True):
            heat[window] += (whole - score) / pictures[window].sum()
    return (heat / np.maximum(covered, 1) * pictures).astype(np.float32)


def gradient(question: Question) -> NDArray[np.float32]:
    """Return ``(L, 48, 48)``: the score's gradient with respect to the ink, where there is ink."""
    hanglyph = question.model.glyph_model.hanglyph
    read: list[Tensor] = []

    def keep(stem: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        read.append(inputs[0].detach().requires_grad_())
        return (read[-1],)

    # With a hook on it the stem is called with the ink as numbers, not as bits; and a row for each token, so that
    # one that stands twice has two gradients.
    handle = hanglyph.stem.register_forward_pre_hook(keep)
    try:
        vectors = hanglyph(_rows(question)[0], question.bitmaps)
    finally:
        handle.remove()
    score = question.score(vectors, _rows(question)).sum()
    ink = [channels[:, 0] for channels in torch.autograd.grad(score, read)]
    pictures = unpack(question.bitmaps.cpu().numpy())
    return (torch.cat(ink).cpu().numpy() * pictures * question.shown[:, None, None]).astype(np.float32)


METHODS: dict[str, Callable[[Question], NDArray[np.float32]]] = {"erasing": occlusion, "gradient": gradient}


def _rows(question: Question) -> Tensor:
    return torch.arange(len(question.ids), device=question.ids.device)[None]


@torch.no_grad()
def _asked(answerer: Answerer, text: str) -> tuple[Question, str]:
    if isinstance(answerer, Tagger):
        raise UserError("this model finds names, which are many answers; choose one that fills masks or labels texts")
    tokenizer, model = answerer.tokenizer, cast(GlyphCRMPreTrainedModel, answerer.model)
    answerer.check(text, "the text")
    place: int | None = None
    if isinstance(answerer, Classifier):
        ids = torch.from_numpy(answerer.read(text).input_ids).to(model.device)
    else:
        text = text.replace(MASKS[1], str(tokenizer.mask_token))
        ids = tokenizer(text, return_tensors="pt")["input_ids"][0].to(model.device)
    if isinstance(answerer, Filler):
        masks = (ids == tokenizer.mask_token_id).nonzero()
        if not len(masks):
            raise UserError(f"the text has no {' or '.join(MASKS)}; put one where a character is to be filled in")
        place = int(masks[0])
    several = model.config.problem_type == "multi_label_classification"

    def log_shares(logits: Tensor) -> Tensor:
        logits = logits if place is None else logits[:, place]
        return logits.sigmoid().log() if several else logits.log_softmax(-1)

    best = int(log_shares(model(input_ids=ids[None]).logits.float()).argmax())
    special = set(tokenizer.all_special_ids)
    shown = np.array([i not in special for i in ids.tolist()])
    question = Question(model, ids, model.glyph_model.glyph_table()[ids], shown, log_shares, best)
    return question, answerer.labels[best] if place is None else str(tokenizer.convert_ids_to_tokens(best))
