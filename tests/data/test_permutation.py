from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data.permutation import visit


@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(1, 2000))
def test_bijection(seed: int, epoch: int, n: int) -> None:
    assert sorted(visit(seed, epoch, k, n) for k in range(n)) == list(range(n))


def test_orders_look_random() -> None:
    n, epochs = 50, 4000
    orders = np.array([[visit(7, epoch, k, n) for k in range(n)] for epoch in range(epochs)])
    assert len({order.tobytes() for order in orders}) == epochs
    for k in (0, 1, n - 1):  # chi-squared, 49 degrees of freedom: mean 49, standard deviation 9.9
        counts = np.bincount(orders[:, k], minlength=n)
        assert ((counts - epochs / n) ** 2 / (epochs / n)).sum() < 49 + 5 * 9.9
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % n, minlength=n)[1:]
    assert ((steps - epochs / (n - 1)) ** 2 / (epochs / (n - 1))).sum() < 49 + 5 * 9.9


def test_large_numbers_and_bounds() -> None:
    n = 10**12
    seen = [visit(1, 0, k, n) for k in range(1000)]
    assert len(set(seen)) == 1000
    assert 0.4 * n < np.mean(seen) < 0.6 * n
    for k in (-1, 3):
        with pytest.raises(IndexError, match="range"):
            visit(1, 0, k, 3)
