from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data.sentences import split_sentences, windows


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


@given(st.text("天地。，！", max_size=60), st.integers(1, 20), st.data())
def test_windows_are_the_sentence_in_order_and_end_at_sentence_ends(text: str, limit: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 2), min_size=len(text), max_size=len(text)))
    ranges = windows(text, limit, sizes)
    assert "".join(text[start:end] for start, end in ranges) == text
    assert all(start < end for start, end in ranges)
    assert all(sum(sizes[start:end]) <= limit or end == start + 1 for start, end in ranges)
    for start, end in ranges[:-1]:
        assert sum(sizes[start : end + 1]) > limit or text[end - 1] in "。！，"
        inside = text[start:end]
        if inside[-1] not in "。！":
            assert not set("。！") & set(inside)
            assert inside[-1] == "，" or "，" not in inside
    if sum(sizes) <= limit and text:
        assert ranges == [(0, len(text))]
