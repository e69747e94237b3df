"""A small text in a file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.classic import TEXT

CLASSIC = TEXT[:-2]  # without the marks


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of twelve sentences, in which neighbouring characters hang together."""
    rng = random.Random(0)
    documents = []
    for _ in range(60):
        sentences = []
        for _ in range(12):
            at = rng.randrange(len(CLASSIC))
            sentences.append((CLASSIC + CLASSIC)[at : at + rng.randint(4, 12)] + "。")
        documents.append("".join(sentences))
    path = tmp_path_factory.mktemp("text") / "classic.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path
