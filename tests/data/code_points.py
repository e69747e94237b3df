"""A toy tokenizer: a character's id is its code point, so that a store can be read back as text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glyphcrm.normalization import normalize


def encode(text: str) -> npt.NDArray[np.int32]:
    return np.frombuffer(normalize(text).encode("utf-32-le"), np.int32)


def decode(ids: npt.NDArray) -> str:
    return "".join(map(chr, ids.tolist()))


def make_documents(count: int) -> list[list[str]]:
    """Documents of 1 to 40 sentences of 1 to 60 characters; document d is written in one character."""
    rng = np.random.default_rng(5)
    documents = []
    for d in range(count):
        sentences = [chr(0x4E00 + d) * rng.integers(1, 60) + "。" for _ in range(rng.integers(1, 41))]
        documents.append(["".join(sentences[:7]), "".join(sentences[7:])])
    return documents
