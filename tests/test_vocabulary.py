from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.errors import UserError
from glyphcrm.glyphs.fonts import Font, default_font
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.vocabulary import build_vocabulary, count_characters, input_only_tokens

texts = st.lists(st.text(st.characters() | st.sampled_from("e\u0301\u3000中\uf900가ᄀ\u1161\n\ud800")), max_size=6)


def font(characters: str, *, system: bool = False) -> Font:
    return Font(default_font().path, 0, "made up", frozenset(map(ord, characters)), system=system)


@given(texts)
def test_counting_is_normalising_and_counting(samples):
    assert count_characters(iter(samples)) == Counter(char for text in samples for char in normalize(text))


def test_a_vocabulary_is_the_frequent_characters_that_a_font_has():
    counts = {"丙": 5, "乙": 5, "甲": 9, "𠮷": 7, "龘": 1, "丁": 1}
    fonts = [font("甲乙丙"), font("丁龘", system=True)]
    assert build_vocabulary(counts, fonts) == [*SPECIAL_TOKENS, *"甲丙乙丁龘"]
    assert build_vocabulary(counts, fonts, size=7) == [*SPECIAL_TOKENS, *"甲丙"]
    with pytest.raises(UserError, match="give 6 or more"):
        build_vocabulary(counts, fonts, size=5)


def test_input_only_characters_are_the_other_han_and_ascii_of_the_fonts_that_are_no_accident():
    fonts = [font("甲乙A〇𠮷\ufa0e\uf900あ"), font("丁", system=True), font("丙")]
    assert input_only_tokens([*SPECIAL_TOKENS, "乙"], fonts) == [*"A〇丙甲\ufa0e𠮷"]


def test_the_default_font_reads_ascii_and_27810_han():
    tokens = input_only_tokens(SPECIAL_TOKENS, [default_font()])
    assert tokens[:94] == [chr(point) for point in range(0x21, 0x7F)]
    assert len(tokens) == 94 + 27_810
    assert tokens == sorted(tokens)
    assert {chr(p) for p in (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000))} <= set(tokens)
