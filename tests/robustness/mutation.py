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


def damaged_encoding(rng: random.Random, content: bytes) -> bytes:
    """Return UTF-8 text in another encoding, with other line ends, or with characters that nobody sees."""
    text = content.decode("utf-8", "replace")
    how = rng.randrange(5)
    if how == 0:
        return text.encode(rng.choice(("gb18030", "utf-16", "utf-16-le", "big5hkscs", "utf-32")), "ignore")
    if how == 1:
        return text.replace("\n", rng.choice(("\r", "\r\n", "\x85", "\u2028", "\x0b"))).encode()
    if how == 2:
        return b"\xef\xbb\xbf" * rng.randint(1, 3) + content
    odd = rng.choice(("\0", "\u200b", "\ufeff", "\u0301", "\ud800", "\U000e0100", "\u1100", "\x1b[31m", "\ufffd"))
    characters = list(text)
    for _ in range(rng.choice((1, 5, 200))):
        characters.insert(rng.randrange(len(characters) + 1), odd)
    return "".join(characters).encode("utf-8", "surrogatepass")
