"""Which characters a model sees as most alike: its glyph vectors beside each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from glyphcrm.errors import UserError
from glyphcrm.modeling.hanglyph import GlyphVectors, in_pieces
from glyphcrm.modeling.pretrained import GlyphCRMPreTrainedModel
from glyphcrm.normalization import normalize

PIECE = 64  # characters encoded at once: the bar moves every second or so on a CPU


def encoded(model: GlyphCRMPreTrainedModel, rows: Tensor) -> GlyphVectors:
    """Return the vectors of atlas rows ``(n,)`` int64, n of 1 or more, with a progress bar if it takes long."""
    bar = tqdm(rows.split(PIECE), "encoding", delay=1.0, leave=False, dynamic_ncols=True)
    return GlyphVectors(*in_pieces(model.glyph_vectors, bar))


@torch.no_grad()
def nearest(model: GlyphCRMPreTrainedModel, wanted: str | Tensor, count: int = 10) -> list[tuple[str, float]]:
    """Return the tokens whose glyph vectors point most nearly where that of `wanted` does, and the cosines, falling.

    The mean over the atlas is taken from all vectors before: a cosine of 0 is that of any two characters. The first
    call encodes the whole atlas, with a progress bar if it takes long, unless `glyphcrm atlas encode` has; in
    evaluation mode later ones find it in the model's cache.

    Args:
        wanted: one character, which is then not among the answers; or a vector ``(d,)``, such as that of a picture
            from ``model.glyph_vectors(pictures).vector``.
        count: how many at most.

    Raises:
        UserError: `count` is below 1, or `wanted` is not one character, or one without a picture, or no such vector.
    """
    if count < 1:
        raise UserError(f"the count is {count}; give 1 or more")
    row = None
    if isinstance(wanted, str):
        if len(char := normalize(wanted)) != 1:
            raise UserError(f"{wanted!r} has {len(char)} characters that are drawn; give one")
        vector = model.glyph_vectors(char).vector[0]
        row = model.vocabulary[char]
    elif wanted.shape == (model.config.hidden_size,):
        vector = wanted.to(model.device)
    else:
        raise UserError(f"a glyph vector is ({model.config.hidden_size},), not {tuple(wanted.shape)}")
    tokens = tuple(model.vocabulary)
    vectors = encoded(model, torch.arange(len(tokens))).vector.float()
    mean = vectors.mean(0)
    cosines = F.normalize(vectors - mean, dim=-1) @ F.normalize(vector.float() - mean, dim=-1)
    if row is not None:
        cosines[row] = -torch.inf  # not itself
    best, found = cosines.topk(min(count, len(tokens) - (row is not None)))
    return [(tokens[i], cosine) for i, cosine in zip(found.tolist(), best.tolist(), strict=True)]
