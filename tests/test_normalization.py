"""Normalisation against what Unicode says, and offsets against the text."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.normalization import is_blank, normalize, normalize_with_offsets

# Letters, accents, Hangul parts, compatibility ideographs, zero-width and line ends, mixed at will.
texts = st.text(
    st.sampled_from(
        "中文Ａaeé\u0301\u0323\u0307\u1100\u1161\u11a8가\uf900\u200b\u200d\ufeff\r\n \u3000\ufe0f\U000e0100𠮷"
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


def test_documented_cases() -> None:
    assert normalize("\ufeff今天\u3000天\u200b氣\r\n") == "今天天氣"
    assert normalize("ＡＢ１２，Word") == "ＡＢ１２，Word"
    assert normalize("\uf900") == "\u8c48"
    assert normalize("葛\U000e0100") == "葛"


@given(texts)
def test_offsets_lead_back_to_the_text(text: str) -> None:
    result, offsets = normalize_with_offsets(text)
    assert result == normalize(text)
    assert offsets == sorted(offsets)
    for char, (start, end) in zip(result, offsets, strict=True):
        assert char in normalize(text[start:end])
