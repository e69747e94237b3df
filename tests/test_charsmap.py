"""The table of replacements against the replacements."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import Precompiled

from glyphcrm.charsmap import precompiled

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@given(st.dictionaries(characters, st.text(characters, max_size=3), min_size=1, max_size=60), st.lists(characters))
def test_the_library_reads_back_every_replacement_and_no_other(replacements: dict[str, str], others: list[str]) -> None:
    normalizer = Precompiled(precompiled(replacements))
    for char in (*replacements, *others):
        assert normalizer.normalize_str(char) == replacements.get(char, char)


def test_a_large_table_leaves_all_other_characters_alone() -> None:
    replacements = {chr(point): chr(point + 1) * (point % 3) for point in range(0x2E00, 0x4E00, 3)}
    normalizer = Precompiled(precompiled(replacements))
    for point in (*range(1, 0xD800), *range(0xE000, 0x110000, 7)):
        assert normalizer.normalize_str(chr(point)) == replacements.get(chr(point), chr(point))
