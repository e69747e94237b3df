from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data.sentences import split_sentences


@given(st.text(st.sampled_from('一二三，、：,。！？!?；…”』）"\n\u3000a'), max_size=200), st.integers(1, 40))
def test_pieces_keep_every_character(paragraph: str, limit: int) -> None:
    pieces = split_sentences(paragraph, limit)
    assert "".join(pieces) == paragraph
    assert all(1 <= len(piece) <= limit for piece in pieces)


def test_cuts() -> None:
    assert split_sentences("“走！”他说。真的？！（是……）好", 50) == [
        "“走！”",
        "他说。",
        "真的？！",
        "（是……）",
        "好",
    ]
    assert split_sentences("一二，三四：五六七八九十。甲", 6) == ["一二，三四：", "五六七八九十", "。", "甲"]
    assert split_sentences("", 5) == []
    with pytest.raises(ValueError, match="max_characters is 0"):
        split_sentences("一", 0)


def test_long_paragraphs_take_linear_time() -> None:
    # Quadratic time would take minutes here.
    for unit in ("一", "，", "。", "”", "一，"):
        assert "".join(split_sentences(unit * 1_000_000, 100)) == unit * 1_000_000
