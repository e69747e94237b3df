"""Which characters look most alike: the pixels in which their pictures differ."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from glyphcrm.glyphs.atlas import GlyphAtlas

DISTANCE_BLOCK = 1 << 22  # 64-bit words compared at a time


def look_alikes_from_atlas(
    atlas: GlyphAtlas, characters: Sequence[str], count: int, wanted: Collection[str] | None = None
) -> dict[str, str]:
    """Return for each of `characters` the `count` others whose pictures differ in the fewest pixels, nearest first.

    Of equally near ones those that stand first in `characters` come first. Characters without a row in `atlas`
    are left out, and with `wanted` all but these. Time grows with the square of their number (7,000: seconds), memory
    does not.

    Raises:
        ValueError: `count` is less than 1, or no less than the number of characters that have a row.
    """
    drawn = [char for char in dict.fromkeys(characters) if char in atlas.rows]
    if not 1 <= count < len(drawn):
        raise ValueError(f"count is {count}; {len(drawn)} characters have 1 to {len(drawn) - 1} look-alikes")
    words = atlas.bitmaps[[atlas.rows[char] for char in drawn]].view(np.uint64)  # (n, 36)
    asked = np.array([i for i, char in enumerate(drawn) if wanted is None or char in wanted], np.int64)
    block = max(1, DISTANCE_BLOCK // words.size)
    nearest: dict[str, str] = {}
    for start in range(0, len(asked), block):
        some = asked[start : start + block]
        differing = np.bitwise_count(words[some, None] ^ words)  # (block, n, 36)
        distance = differing.sum(-1, dtype=np.int32)
        distance[np.arange(len(some)), some] = np.iinfo(np.int32).max  # itself
        for row, order in zip(
            some.tolist(), np.argsort(distance, axis=1, kind="stable")[:, :count].tolist(), strict=True
        ):
            nearest[drawn[row]] = "".join(drawn[other] for other in order)
    return nearest
