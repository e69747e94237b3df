"""What a model makes of one character, typed or drawn: its neighbours, and what it reads it as in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from glyphcrm.answers import MASKS
from glyphcrm.errors import UserError
from glyphcrm.glyphs.raster import pack
from glyphcrm.modeling import nearest
from glyphcrm.modeling.hanglyph import GlyphVectors
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.web.drawing import picture_of
from glyphcrm.web.models import Models, bounded

NEIGHBOURS = 10

Shares = tuple[tuple[str, float], ...]  # characters with a probability or a cosine, falling


@dataclass(frozen=True, eq=False)
class Seen:
    """A character as the model sees it."""

    picture: NDArray[np.uint8]  # (48, 48), ink 1
    neighbours: Shares  # by the cosines of glyph vectors, the atlas' mean taken from them
    read: Shares = ()  # what stands in the sentence where the character is shown, with probabilities
    hidden: Shares = ()  # the same where [MASK] is shown in its place: from the sentence alone


def see_typed(models: Models, text: str, sentence: str) -> Seen:
    """Return how a character of the atlas is seen; `sentence` has a ▢ for it, or is blank.

    Raises `UserError`: `text` is not one character, or has no picture; or a sentence without, or with several, ▢.
    """
    char = normalize(bounded(text))
    if len(char) != 1:
        raise UserError(f"{len(char)} characters; type one, or draw one")
    vectors = models.glyphcrm.glyph_vectors(char)
    picture = models.atlas.pictures(models.atlas.rows[char])
    return _see(models, picture, vectors, char, sentence)


def see_drawn(models: Models, drawing: str | None, sentence: str) -> Seen:
    """As `see_typed`, of a drawing (see `picture_of`), which is in no row of the atlas."""
    picture = picture_of(drawing)
    vectors = models.glyphcrm.glyph_vectors(pack(picture)[None])
    return _see(models, picture, vectors, vectors.vector[0], sentence)


def _see(
    models: Models, picture: NDArray[np.uint8], vectors: GlyphVectors, wanted: str | torch.Tensor, sentence: str
) -> Seen:
    read, hidden = _in_sentence(models, vectors, bounded(sentence)) if sentence.strip() else ((), ())
    found = nearest(models.glyphcrm, wanted, NEIGHBOURS + len(SPECIAL_TOKENS))
    neighbours = [(token, cosine) for token, cosine in found if len(token) == 1]
    return Seen(picture, tuple(neighbours[:NEIGHBOURS]), read, hidden)


@torch.no_grad()
def _in_sentence(models: Models, shown: GlyphVectors, sentence: str) -> tuple[Shares, Shares]:
    """Return the best characters at the ▢, with `shown` ``(1, d)`` in its place, and with [MASK].

    The masked-LM head was trained on characters that stay as they are, too: it says what it reads where it is shown
    one.
    """
    filler, model = models.filler, models.glyphcrm
    tokenizer = filler.tokenizer
    mask = str(tokenizer.mask_token)
    ids = tokenizer(sentence.replace(MASKS[1], mask), return_tensors="pt")["input_ids"][0]
    places = (ids == tokenizer.mask_token_id).nonzero().squeeze(1)
    if len(places) != 1:
        raise UserError(f"the sentence has {len(places)} ▢; give it one, where the character is to stand")
    if len(ids) > filler.longest:
        raise UserError(f"the sentence has {len(ids)} tokens; the model reads {filler.longest} at once, shorten it")
    own = model.glyph_vectors(ids)
    vectors = GlyphVectors(*(torch.cat(parts) for parts in zip(own, shown, strict=True)))
    index = torch.arange(len(ids)).repeat(2, 1)
    index[0, places] = len(ids)
    read, hidden = filler.best(model(glyph_vectors=vectors, glyph_index=index).logits[:, places[0]])
    return read, hidden
