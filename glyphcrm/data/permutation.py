"""A pseudo-random order of n items that takes no memory: any place in it is computed alone."""

from __future__ import annotations

import functools
import math

ROUNDS = 6
_MASK = (1 << 64) - 1


def visit(seed: int, epoch: int, k: int, n: int) -> int:
    """Return the k-th item, 0 <= k < n, of the order of range(n) that (seed, epoch) stands for.

    A Feistel network permutes pairs (left, right) of a near-square that holds n; what lands at n or above is permuted
    again (cycle walking, J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).

    Raises `IndexError` if k is not in range(n).
    """
    if not 0 <= k < n:
        raise IndexError(f"position {k} is not in range({n})")
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    keys = _round_keys(seed, epoch)
    while True:
        left, right = divmod(k, columns)
        for i in range(0, ROUNDS, 2):
            left = (left + _mix(right ^ keys[i])) % rows
            right = (right + _mix(left ^ keys[i + 1])) % columns
        k = left * columns + right
        if k < n:
            return k


@functools.lru_cache(maxsize=16)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    state = _mix(_mix(seed & _MASK) ^ epoch)
    return tuple(_mix(state + i) for i in range(1, ROUNDS + 1))


def _mix(value: int) -> int:
    """Hash 64 bits to 64 bits (splitmix64, G. Steele et al., OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
