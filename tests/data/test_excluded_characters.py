"""Sentences with excluded characters are gone, all others stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data.excluded_characters import read_characters, without
from glyphcrm.errors import UserError
from glyphcrm.normalization import normalize
from glyphcrm.reproduce.held_out import choose_excluded
from glyphcrm.vocabulary import count_characters

DOCUMENTS = st.lists(st.lists(st.text(st.sampled_from("天地玄黄。！”，\u3000豈"), max_size=30), max_size=4), max_size=4)


@given(DOCUMENTS, st.frozensets(st.sampled_from("天地玄黄，豈"), min_size=1))
def test_no_excluded_character_is_left(documents: list[list[str]], excluded: frozenset[str]) -> None:
    left = list(without(documents, excluded))
    assert all(document and all(map(normalize, document)) for document in left)
    text = "".join(paragraph for document in left for paragraph in document)
    assert excluded.isdisjoint(normalize(text))
    # What has nothing to lose loses nothing.
    clean = [d for d in ([p for p in d if p and not p.isspace()] for d in documents) if d]
    if all(excluded.isdisjoint(normalize(p)) for d in clean for p in d):
        assert left == clean


def test_sentences_go_one_by_one() -> None:
    documents = [["天地。玄黄！”宇宙", "玄。"], ["玄"], ["洪荒，玄。日月"]]
    assert list(without(documents, frozenset("玄"))) == [["天地。宇宙"], ["日月"]]
    # A compatibility ideograph is the character that it is read as.
    assert list(without([["\uf900何。是"]], frozenset("豈"))) == [["是"]]


def test_documents_are_not_held() -> None:
    def endless() -> Iterator[list[str]]:
        while True:
            yield ["天地。玄黄。"]

    assert next(without(endless(), frozenset("玄"))) == ["天地。"]


def test_a_file_of_characters(tmp_path: Path) -> None:
    path = tmp_path / "characters.txt"
    path.write_text("\ufeff天 地\n\uf900\n", encoding="utf-8")
    assert read_characters(path) == frozenset("天地豈")
    path.write_text(" \n", encoding="utf-8")
    with pytest.raises(UserError, match=r"characters.txt: no character there"):
        read_characters(path)
    path.write_bytes(b"\xcc\xec")
    with pytest.raises(UserError, match=r"characters.txt: not UTF-8 at byte 0; it looks like GBK"):
        read_characters(path)
    with pytest.raises(UserError, match=r"absent.txt: cannot be read"):
        read_characters(tmp_path / "absent.txt")


def made_up_texts() -> list[str]:
    """400 texts: character n of 40 stands, twice, in n of them; a comma in 20."""
    texts = [""] * 400
    for n in range(40):
        for i in range(n):
            texts[(7 * i + n) % 400] += chr(0x4E00 + n) * 2
    return [text + "，" * (i < 20) for i, text in enumerate(texts)]


def test_held_out_characters_are_of_middling_frequency() -> None:
    corpus = {chr(0x4E00 + n): 1000 if n == 12 else 10 for n in range(40)} | {"，": 9999, "。": 9999}
    chosen = [
        choose_excluded(made_up_texts(), corpus, 10, seed, least_share=0.02, most_share=0.05, kept_most_frequent=3)
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    eligible = {chr(0x4E00 + n) for n in range(8, 21) if n != 12}
    assert all(len(characters) == 10 and characters <= eligible for characters in chosen)
    with pytest.raises(UserError, match=r"13 held-out characters.* 12 Han characters.*2.0% to 5.0% of the 400 texts"):
        choose_excluded(made_up_texts(), corpus, 13, 0, least_share=0.02, most_share=0.05, kept_most_frequent=3)


def test_text_remains_without_held_out_characters() -> None:
    paragraphs = [f"{text}。" for text in made_up_texts()]
    excluded = choose_excluded(paragraphs, count_characters(paragraphs), 3, 0, most_share=0.1, kept_most_frequent=10)
    left = list(without([paragraphs], excluded))
    assert left == [[p for p in paragraphs if excluded.isdisjoint(p)]]
    assert 0 < len(left[0]) < len(paragraphs)


def test_no_texts_no_characters() -> None:
    with pytest.raises(UserError, match="5 held-out characters asked for; 0 Han"):
        choose_excluded([], {}, 5, 0)
