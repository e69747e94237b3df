"""How long an atlas takes: to draw with the default font, and to load. One core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.vocabulary import DEFAULT_VOCABULARY_SIZE, SPECIAL_TOKENS, input_only_tokens


@pytest.fixture(scope="module")
def tokens() -> list[str]:
    han = input_only_tokens(SPECIAL_TOKENS, [default_font()])
    return [*SPECIAL_TOKENS, *han][:DEFAULT_VOCABULARY_SIZE]


def test_build(benchmark: Any, tokens: list[str]) -> None:
    atlas = benchmark.pedantic(GlyphAtlas.build, (tokens, [default_font()]), rounds=3)
    assert len(atlas) == DEFAULT_VOCABULARY_SIZE


def test_load(benchmark: Any, tokens: list[str], tmp_path: Path) -> None:
    path = tmp_path / "atlas.safetensors"
    GlyphAtlas.build(tokens, [default_font()]).save(path)
    assert len(benchmark(GlyphAtlas.load, path)) == DEFAULT_VOCABULARY_SIZE
