"""BERT's dynamic masking: which characters are to be predicted, what stands in their place, and their labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glyphcrm.tokens import FIRST_ORDINARY_ID, MASK_ID, UNK_ID

MASK_PROBABILITY = 0.15  # the masking rate: the share of the characters that are to be predicted
# What the model sees instead of one of those: [MASK], a random character, or else the character itself.
SHOWN_AS_MASK = 0.8
SHOWN_AS_RANDOM = 0.1

IGNORED_LABEL = -100  # the label of a position that is not predicted: ignore_index of PyTorch's losses


def label_ids(ids: npt.NDArray[np.int64], vocabulary_size: int) -> npt.NDArray[np.int64]:
    """Return what is to be predicted for each id: itself, or [UNK] for a character that can only be read."""
    return np.where(ids < vocabulary_size, ids, UNK_ID)


def mask_tokens(
    ids: npt.NDArray[np.int64],
    maskable: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    vocabulary_size: int,
    probability: float = MASK_PROBABILITY,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose positions to predict; return the masked ids and the labels (-100 for none, `label_ids`), both (L,) int64.

    Of the n positions where `maskable` (L,) round(probability * n) are chosen without replacement, at least
    one if there is any (Devlin et al. 2019, section 3.1). Each becomes [MASK] with probability 0.8,
    a random id of [FIRST_ORDINARY_ID, vocabulary_size) with 0.1, and stays with 0.1.
    """
    masked = ids.copy()
    labels = np.full(ids.shape, IGNORED_LABEL, np.int64)
    candidates = np.flatnonzero(maskable)
    if candidates.size == 0:
        return masked, labels
    count = max(1, round(probability * candidates.size))
    chosen = rng.permutation(candidates)[:count]
    truth = ids[chosen]
    labels[chosen] = label_ids(truth, vocabulary_size)
    fate = rng.random(count)
    random_ids = rng.integers(FIRST_ORDINARY_ID, vocabulary_size, count)
    replaced = np.where(fate < SHOWN_AS_MASK + SHOWN_AS_RANDOM, random_ids, truth)
    masked[chosen] = np.where(fate < SHOWN_AS_MASK, MASK_ID, replaced)
    return masked, labels
