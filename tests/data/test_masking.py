from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data.masking import IGNORED_LABEL, mask_tokens

MASK, UNK, FIRST, VOCABULARY = 4, 1, 5, 1000


def mask(ids: np.ndarray, maskable: np.ndarray, seed: int, probability: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    return mask_tokens(ids, maskable, np.random.default_rng(seed), VOCABULARY, probability)


@given(st.lists(st.integers(0, 1500)), st.integers(0, 2**32), st.floats(0.001, 1))
def test_properties(values: list[int], seed: int, probability: float) -> None:
    ids = np.array(values, np.int64)
    before = ids.copy()
    maskable = ids >= FIRST
    masked, labels = mask(ids, maskable, seed, probability)
    chosen = labels != IGNORED_LABEL
    assert (ids == before).all()
    assert chosen.sum() == (max(1, round(probability * maskable.sum())) if maskable.any() else 0)
    assert not (chosen & ~maskable).any()
    assert (masked[~chosen] == ids[~chosen]).all()
    assert (labels[chosen] == np.where(ids < VOCABULARY, ids, UNK)[chosen]).all()
    replaced = masked[chosen & (masked != ids)]
    assert ((replaced == MASK) | ((replaced >= FIRST) & (replaced < VOCABULARY))).all()


def test_shares() -> None:
    n = 400_000
    ids = np.random.default_rng(1).integers(FIRST, VOCABULARY, n)
    masked, labels = mask(ids, np.ones(n, bool), 2)
    chosen = labels != IGNORED_LABEL
    count = 60_000
    assert chosen.sum() == count

    def within(successes: int, share: float) -> bool:
        return abs(successes - count * share) < 4 * (count * share * (1 - share)) ** 0.5

    other = chosen & (masked != MASK)
    assert within((masked[chosen] == MASK).sum(), 0.8)
    assert within((other & (masked != ids)).sum(), 0.1 * (1 - 1 / (VOCABULARY - FIRST)))
    random = masked[other & (masked != ids)]
    assert random.min() < FIRST + 20
    assert random.max() > VOCABULARY - 20
    assert np.flatnonzero(chosen).mean() == pytest.approx(n / 2, rel=0.01)
