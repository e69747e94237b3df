"""Ways to damage bytes and JSON."""

from __future__ import annotations

import json
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 7, 10**4, 10**6, 10**9, 2**63, 1.5, -0.5, 1e308, float("nan"), float("inf")),
    *("x", "", None, [], {}, True, [1], "é\n\x1b[31m", {"a": 1}),
)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Return bytes with bits flipped, parts cut, doubled, zeroed or exchanged for others, once to sixteen times."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = rng.randrange(len(data))
        how = rng.randrange(6)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at : len(data) if rng.random() < 0.4 else at + rng.randint(1, 64)]
        elif how == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 64))
        elif how == 3:
            data[at:at] = data[at : at + rng.randint(1, 256)]
        elif how == 4:
            data[at : at + 8] = bytes(len(data[at : at + 8]))
        else:
            number = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000))
            data[at : at + 4] = number.to_bytes(4, rng.choice(("little", "big")))[: len(data[at : at + 4])]
    return bytes(data)


def damaged_json(rng: random.Random, content: bytes) -> bytes:
    """Return a JSON object with a value exchanged, or something else that is not it."""
    how = rng.random()
    if how < 0.7:
        found = json.loads(content)
        found[rng.choice(list(found))] = rng.choice(VALUES)
        return json.dumps(found).encode()
    if how < 0.85:
        return damaged(rng, content)
    return rng.choice((b"", b"[]", b"5", b"null", b"{", b'{"a":' * 50_000, b"\xff\xfe", bytes(100), content[:-20]))
