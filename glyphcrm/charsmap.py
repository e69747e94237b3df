"""A table of replacements in the format that the `tokenizers` library reads: SentencePiece's precompiled charsmap.

It is a double array (Aoe 1989, as Darts lays it out) over the UTF-8 bytes of what is replaced, and after it the
replacements. A node of the trie is a number b, its child for byte c is unit ``b ^ c``, which repeats c to tell its own
children from others' that fell on free units. A unit is 32 bits: c; bit 8, whether a key ends here, in which case
unit b holds where the replacement begins (with bit 31 set); from bit 10, the unit's own index ^ b.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_KEY_ENDS = 1 << 8
_VALUE = 1 << 31
_OFFSET = 10  # bits to the left
_BLOCK = 256  # any byte leads to a unit: the array is a multiple of what a byte can tell apart

_Node = dict[int, "_Node | int"]  # children by byte; under 0, the value of the key that ends here


def precompiled(replacements: Mapping[str, str]) -> bytes:
    """Return the table; keys and replacements hold no NUL, and a replacement may be empty."""
    values: dict[str, int] = {}
    strings = bytearray()
    for replacement in replacements.values():
        if replacement not in values:
            values[replacement] = len(strings)
            strings += replacement.encode() + b"\0"
    root: _Node = {}
    for key, replacement in replacements.items():
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})  # type: ignore[assignment]
        node[0] = values[replacement]
    units = _units(root)
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + bytes(strings)


def _units(root: _Node) -> list[int]:
    units = {0: 0}
    waiting = [(0, root)]
    number = 0
    for position, node in waiting:  # grows on the way: breadth first
        # Numbers rise, since two nodes of one number would have each other's children.
        number += 1
        while any(number ^ byte in units for byte in node):
            number += 1
        units[position] |= (position ^ number) << _OFFSET
        for byte, child in node.items():
            if isinstance(child, int):
                units[position] |= _KEY_ENDS
                units[number] = _VALUE | child
            else:
                units[number ^ byte] = byte
                waiting.append((number ^ byte, child))
    size = -(-(max(units) + 1) // _BLOCK) * _BLOCK
    return [units.get(i, 0) for i in range(size)]
