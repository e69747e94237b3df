"""Random numbers that depend on what they are for, and on nothing that happened before."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers decides about a sample."""

    PAIR = 0
    MASK = 1


def random_stream(seed: int, epoch: int, index: int, purpose: Purpose) -> np.random.Generator:
    """Return the generator of (seed, epoch, index, purpose), each an integer in [0, 2**64)."""
    # The four are Philox's key and the upper half of its counter: no two streams overlap before 2**128 draws.
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, index, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
