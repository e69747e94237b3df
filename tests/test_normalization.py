"""Normalisation against what Unicode says, and clusters against the text."""

from __future__ import annotations

import itertools
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.normalization import (
    DROPPED,
    clusters,
    is_blank,
    is_dropped,
    normalize,
    normalize_label,
    stand_ins,
)

# Letters, accents, Hangul parts, compatibility ideographs, zero-width and line ends, mixed at will.
texts = st.text(
    st.sampled_from(
        "中文Ａaeéz\u0301\u0304\u0323\u0307\u1100\u1161\u11a8가\uf900\u200b\u200d\ufeff\r\n \u3000\ufe0f\U000e0100𠮷"
    )
    | st.characters(),
    max_size=12,
)


@given(texts)
def test_normalising_is_final_and_drops_only_what_has_no_ink(text: str) -> None:
    result = normalize(text)
    assert normalize(result) == result == unicodedata.normalize("NFC", result)
    assert not any(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in result)
    assert is_blank(text) == (result == "")


@given(st.text(st.sampled_from(" \u3000\u200b\ufeff\ufe0f\x00\u0301中"), max_size=4))
def test_blank_is_what_nothing_is_left_of(text: str) -> None:
    assert is_blank(text) == (normalize(text) == "")


def test_the_table_of_what_is_dropped_is_unicodes() -> None:
    points = {point for first, last in DROPPED for point in range(first, last + 1)}
    selectors = {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
    for point in range(0x110000):
        char = chr(point)
        category = unicodedata.category(char)
        if category != "Cn":  # a newer Unicode than the table's may only add
            assert (point in points) == (char.isspace() or category in ("Cc", "Cf") or point in selectors), hex(point)
        assert is_dropped(char) == (point in points)


def test_documented_cases() -> None:
    assert normalize("\ufeff今天\u3000天\u200b氣\r\n") == "今天天氣"
    assert normalize("ＡＢ１２，Word") == "ＡＢ１２，Word"
    assert normalize("\uf900") == "\u8c48"
    assert normalize("葛\U000e0100") == "葛"
    assert normalize_label("\ufeff very\u3000\u200b good\u00ad ") == "very good"
    assert normalize_label("cafe\u0301") == "caf\u00e9"
    assert normalize_label(" \u200b ") == ""


@given(texts, texts)
def test_clusters_hold_all_that_is_kept_each_by_itself(text: str, more: str) -> None:
    ranges = clusters(text)
    assert all(start < end for start, end in ranges)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert "".join(normalize(text[start:end]) for start, end in ranges) == normalize(text)
    left_out = set(range(len(text))).difference(*(range(start, end) for start, end in ranges))
    assert all(is_dropped(text[i]) for i in left_out)
    for start, end in ranges:
        assert not is_dropped(text[start]) and not is_dropped(text[end - 1])
        assert clusters(text[start:end]) == [(0, end - start)]
    # What stands elsewhere makes no difference.
    assert clusters(text + "中" + more)[: len(ranges)] == ranges


def test_accents_and_jamo_belong_to_a_letter() -> None:
    assert clusters("叫z\u0304a") == clusters("叫z\u0304a\uf900")[:3] == [(0, 1), (1, 3), (3, 4)]
    assert clusters("e\u200b\u0301 \u1112\u1161\u11ab天") == [(0, 3), (4, 7), (7, 8)]
    assert clusters("\u0301 ｶﾞ") == [(0, 1), (2, 4)]


def test_a_long_run_of_accents_takes_no_longer_than_it_is_long() -> None:
    marks = "\u0301" * 200_000
    assert clusters("a" + marks + "b") == [(0, 200_001), (200_001, 200_002)]


def test_stand_ins_are_whole_forms_of_what_has_no_row() -> None:
    known = set("人工株()m2门彐が力カ母①")
    found = stand_ins(known)
    assert {char: found.get(char) for char in "⼈⼯㈱㎡⻔⺕ｶ⺟⼒㎥①人"} == {
        "⼈": "人",
        "⼯": "工",
        "㈱": "(株)",
        "㎡": "m2",
        "⻔": "门",
        "⺕": "彐",
        "ｶ": "カ",
        "⺟": "母",
        "⼒": "力",
        "㎥": None,
        "①": None,
        "人": None,
    }
    assert known.isdisjoint(found)
    # All that has a compatibility form in Unicode may have a stand-in.
    everything = {chr(point) for point in range(0x110000) if chr(point) == unicodedata.normalize("NFKC", chr(point))}
    unread = {
        chr(point) for point in range(0x110000) if unicodedata.decomposition(chr(point)).startswith("<")
    } - stand_ins(everything).keys()
    assert all(normalize(char) == "" for char in unread)
