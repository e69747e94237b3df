"""BERT's dynamic masking."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IGNORED = -100  # the label of a position that is not predicted: ignore_index of PyTorch's losses
MASKED_SHARE = 0.8
RANDOM_SHARE = 0.1


def mask_tokens(
    ids: npt.NDArray[np.int64],
    maskable: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    mask_id: int,
    vocabulary_size: int,
    first_ordinary_id: int,
    unk_id: int,
    probability: float = 0.15,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose positions to predict; return the masked ids and the labels, both (L,) int64.

    Of the n maskable positions round(probability * n) are chosen without replacement, at least
    one if there is any (Devlin et al. 2019, section 3.1). Each becomes `mask_id` with probability
    0.8, a random id of [first_ordinary_id, vocabulary_size) with 0.1, and stays with 0.1.

    Args:
        ids: (L,), not changed.
        maskable: (L,), false at special tokens and padding.
        unk_id: the label of a chosen id that is not in the vocabulary (id >= vocabulary_size):
            such a character can be read but not predicted.

    Labels are -100 where nothing is predicted.
    """
    masked = ids.copy()
    labels = np.full(ids.shape, IGNORED, np.int64)
    candidates = np.flatnonzero(maskable)
    if candidates.size == 0:
        return masked, labels
    count = max(1, round(probability * candidates.size))
    chosen = rng.permutation(candidates)[:count]
    truth = ids[chosen]
    labels[chosen] = np.where(truth < vocabulary_size, truth, unk_id)
    fate = rng.random(count)
    random_ids = rng.integers(first_ordinary_id, vocabulary_size, count)
    replaced = np.where(fate < MASKED_SHARE + RANDOM_SHARE, random_ids, truth)
    masked[chosen] = np.where(fate < MASKED_SHARE, mask_id, replaced)
    return masked, labels
