from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm import vocabulary
from glyphcrm.errors import UserError
from glyphcrm.glyphs.font_file import Font
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.vocabulary import build_vocabulary, count_characters, input_only_tokens

texts = st.lists(st.text(st.characters() | st.sampled_from("e\u0301\u3000中\uf900가ᄀ\u1161\n\ud800")), max_size=6)


def font(characters: str, *, system: bool = False) -> Font:
    return Font(default_font().path, 0, "made up", frozenset(map(ord, characters)), system=system)


@given(texts, st.integers(1, 9))
def test_counting_is_normalising_and_counting(samples, block):
    vocabulary._BLOCK_CHARACTERS, usual = block, vocabulary._BLOCK_CHARACTERS
    try:
        counts = count_characters(iter(samples))
    finally:
        vocabulary._BLOCK_CHARACTERS = usual
    assert counts == Counter(char for text in samples for char in normalize(text))


def test_a_vocabulary_is_the_frequent_characters_that_a_font_has():
    counts = {"丙": 5, "乙": 5, "甲": 9, "𠮷": 7, "龘": 1, "丁": 1}
    fonts = [font("甲乙丙"), font("丁龘", system=True)]
    assert build_vocabulary(counts, fonts) == [*SPECIAL_TOKENS, *"甲丙乙丁龘"]
    assert build_vocabulary(counts, fonts, size=7) == [*SPECIAL_TOKENS, *"甲丙"]
    with pytest.raises(UserError, match="give 6 or more"):
        build_vocabulary(counts, fonts, size=5)


def test_input_only_characters_are_the_others_of_the_fonts_that_are_no_accident():
    dropped = "\uf900\u2126 \u3000\u200b\ufe0f\x07\ue000\U0010fffd\uffff\u0378"  # and what has no meaning
    fonts = [font("甲乙A〇𠮷\ufa0eあ⼈㎡々α。\U00033479" + dropped), font("丁", system=True), font("丙")]
    assert input_only_tokens([*SPECIAL_TOKENS, "乙"], fonts) == sorted("Aα。〇あ⼈㎡々丙甲\ufa0e𠮷\U00033479")


def test_whatever_the_default_font_has_and_a_text_can_hold_is_read():
    font = default_font()
    tokens = input_only_tokens(SPECIAL_TOKENS, [font])
    assert len(tokens) == 30_789 and tokens == sorted(tokens)
    assert {chr(p) for p in (*range(0x21, 0x7F), *range(0x3400, 0x4DC0), *range(0x4E00, 0xA000))} <= set(tokens)
    assert {chr(p) for p in (*range(0x2F00, 0x2FD6), *range(0x3041, 0x3097), *range(0x3105, 0x3130))} <= set(tokens)
    assert set("⼈⼯智能是⽅⾯的⼀个重要问题㈱㎡か々、。「」①Ⅳαя→℃") <= set(tokens)
    # Nothing is out of vocabulary that the font draws and normalisation leaves.
    assert set(normalize("".join(map(chr, font.coverage)))) == set(tokens)
