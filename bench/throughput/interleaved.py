"""Timing of several ways by turns: the machine's speed drifts, so only what ran in the same minute compares."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Seconds = dict[str, list[float]]


def seconds_by_turns(ways: Mapping[str, Callable[[int], object]], rounds: int) -> Seconds:
    """Call every way once a round, in reverse order in every other round, and return the seconds of each call.

    A way is called with the number of the round. It is not warmed up here.
    """
    seconds: Seconds = {name: [] for name in ways}
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        for name in order:
            gc.collect()
            start = time.perf_counter()
            ways[name](number)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance of the quartiles, 0 for one value."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)
