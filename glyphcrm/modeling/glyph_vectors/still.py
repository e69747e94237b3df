"""What HanGlyph's convolutions make of every picture, computed once for the steps in which they stand still."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from glyphcrm.modeling.glyph_vectors import ranks
from glyphcrm.modeling.hanglyph import PIECE, HanGlyph, StillFeatures


@torch.no_grad()
def hold_convolutions(hanglyph: HanGlyph, bitmaps: Tensor, progress: bool = False) -> None:
    """Let the convolutions stand still: compute `features` of ``bitmaps (N, 288)`` once, for every later `forward`.

    The convolutions then get no gradients. Kept are ``C1*144 + C2*9`` numbers a picture in the dtype that features
    have here (at base size 21 kB under bfloat16 autocast), until `hanglyph.still` is None again; so call this again
    when other weights were loaded, or the model was moved.

    Of several processes of torch.distributed each computes a share; all of them call this, with the same weights.
    `progress` shows a bar on a terminal.
    """
    hanglyph.still = None
    rows = torch.arange(len(bitmaps), device=bitmaps.device)
    own = ranks.own_share(ranks.filled_up(rows, math.ceil(len(rows) / ranks.world()) * ranks.world()))
    wholes: list[Tensor] = []  # written piece by piece, as all pieces and the whole would be twice the memory
    shown = {"desc": "convolving", "unit": " pictures", "disable": None if progress else True}
    with tqdm(total=len(own), leave=False, dynamic_ncols=True, **shown) as bar:
        for start in range(0, len(own), PIECE):
            made = hanglyph.features(own[start : start + PIECE], bitmaps)
            wholes = wholes or [part.new_empty(len(own) * ranks.world(), part.shape[1]) for part in made]
            for whole, part in zip(wholes, made, strict=True):
                ranks.own_share(whole)[start : start + len(part)] = part
            bar.update(len(made[0]))
    for whole in wholes:
        ranks.exchange(whole)
    hanglyph.still = StillFeatures(bitmaps, *wholes)
