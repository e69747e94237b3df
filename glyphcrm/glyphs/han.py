"""Which code points are Chinese characters."""

from __future__ import annotations

# Unicode 17, Blocks.txt. Blocks, not assigned characters, so that a newer font is not held back.
HAN_BLOCKS = (
    range(0x3007, 0x3008),  # ideographic number zero
    range(0x3400, 0x4DC0),  # Extension A
    range(0x4E00, 0xA000),  # the unified repertoire and ordering
    range(0xF900, 0xFB00),  # compatibility ideographs; twelve of them are unified
    range(0x20000, 0x2A6E0),  # Extension B
    range(0x2A700, 0x2EE60),  # Extensions C, D, E, F, I
    range(0x2F800, 0x2FA20),  # compatibility supplement
    range(0x30000, 0x33480),  # Extensions G, H, J
)


def is_han(point: int) -> bool:
    """Whether the code point `point` lies in a block of Han ideographs (or is U+3007, 〇)."""
    return any(point in block for block in HAN_BLOCKS)
