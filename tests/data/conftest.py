from __future__ import annotations

from pathlib import Path

import pytest

from glyphcrm.data.token_store import TokenStore
from tests.data.code_points import encode, make_documents


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """100 documents; all tokens of document d are 0x4E00 + d or a full stop."""
    return TokenStore.write(
        tmp_path_factory.mktemp("corpus") / "store",
        make_documents(100),
        encode,
        max_sentence_characters=60,
        fingerprint="made up",
        progress=False,
    )


@pytest.fixture(scope="session")
def corpus_file() -> Path:
    path = Path(__file__).parents[2].parent / "shared" / "data" / "corpus" / "people_daily_199801.txt.xz"
    if not path.exists():
        pytest.skip("the shared corpus is not here")
    return path
