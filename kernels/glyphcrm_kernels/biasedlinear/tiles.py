"""The linear layer: the tiles of the column sums in Triton.

A thread takes 16 bytes of a row at a time, and loads eight of them (sixteen in float32) before it adds them up.
"""

from __future__ import annotations

from typing import NamedTuple

THREADS = 128
PROGRAMS_A_MULTIPROCESSOR = 4  # 64 KiB on their way; an H200 needs some 23 (its bandwidth times its latency)


class Tile(NamedTuple):
    """What a program loads at once.

    Attributes:
        rows, columns: its size.
        parts: neighbouring rows that THREADS load side by side, whose sums are kept apart until the end.
    """

    rows: int
    columns: int
    parts: int


VALUES = Tile(rows=32, columns=256, parts=4)
# The partial sums are few: narrow tiles, that more than three programs share them.
PARTIAL_SUMS = Tile(rows=64, columns=64, parts=8)


def programs(multiprocessors: int, rows: int, d: int) -> int:
    """Return how many programs share the rows of a column, at least one."""
    wanted = PROGRAMS_A_MULTIPROCESSOR * multiprocessors // -(-d // VALUES.columns)
    return max(1, min(wanted, -(-rows // VALUES.rows)))
