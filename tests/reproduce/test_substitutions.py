"""Rewritten test texts: the draw and the files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.errors import UserError
from glyphcrm.reproduce.substitutions import (
    read_look_alikes,
    rewritten,
    substitute,
    to_traditional,
)
from glyphcrm.tasks.examples import TaggedExample, TextExample

LOOK_ALIKES = {"未": "末朱", "土": "士", "日": "曰目白", "𠮷": "吉"}
TEXTS = st.text(st.sampled_from("未土日𠮷天，a"), max_size=80)


def changed(old: str, new: str) -> dict[int, str]:
    assert len(old) == len(new)
    return {place: after for place, (before, after) in enumerate(zip(old, new, strict=True)) if before != after}


@given(TEXTS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**40), st.integers(0, 2**40))
def test_what_is_replaced_stays_replaced_at_a_higher_share(text: str, a: float, b: float, seed: int, i: int) -> None:
    few, many = (changed(text, substitute(text, LOOK_ALIKES, share, seed, i)) for share in sorted((a, b)))
    assert few.items() <= many.items()
    assert all(after in LOOK_ALIKES[text[place]] for place, after in many.items())
    all_of_them = changed(text, substitute(text, LOOK_ALIKES, 1, seed, i))
    assert set(all_of_them) == {place for place, char in enumerate(text) if char in LOOK_ALIKES}
    assert substitute(text, LOOK_ALIKES, 0, seed, i) == text


def test_share_and_choice_are_even_and_texts_and_seeds_differ() -> None:
    text = "日" * 20_000
    new = substitute(text, LOOK_ALIKES, 0.3, 0, 0)
    assert np.mean([char != "日" for char in new]) == pytest.approx(0.3, abs=0.015)  # 4.6 standard deviations
    for other in "曰目白":
        assert new.count(other) / len(text) == pytest.approx(0.1, abs=0.01)
    again = substitute(text, LOOK_ALIKES, 0.3, 0, 0)
    by_index, by_seed = substitute(text, LOOK_ALIKES, 0.3, 0, 1), substitute(text, LOOK_ALIKES, 0.3, 1, 0)
    assert new == again and len({new, by_index, by_seed}) == 3
    # The draw at a place depends on nothing else in the text: another model's longer or shorter window changes nothing.
    assert substitute(text[:100], LOOK_ALIKES, 0.3, 0, 0) == new[:100]


@given(TEXTS, TEXTS, st.integers(0, 99))
def test_examples_keep_everything_but_their_text(first: str, second: str, index: int) -> None:
    draw = partial(substitute, look_alikes=LOOK_ALIKES, share=0.5, seed=3, index=index)
    plain = TextExample(first, "1", None, "a.tsv:4")
    assert rewritten(plain, draw) == TextExample(draw(first), "1", None, "a.tsv:4")
    pair = rewritten(TextExample(first, "1", second, "a.tsv:5"), draw)
    assert pair == TextExample(draw(first), "1", draw(first + second)[len(first) :], "a.tsv:5")
    tags = tuple("O" if i % 2 else "B-PER" for i in range(len(first)))
    tagged = rewritten(TaggedExample(tuple(first), tags, "a.txt:9"), draw)
    assert tagged == TaggedExample(tuple(draw(first)), tags, "a.txt:9")


def test_two_equal_sentences_of_a_pair_are_drawn_apart() -> None:
    draw = partial(substitute, look_alikes=LOOK_ALIKES, share=0.5, seed=0, index=0)
    new = rewritten(TextExample("日" * 40, "1", "日" * 40), draw)
    assert new.text != new.pair


@pytest.mark.parametrize("example", [TextExample("日土", "1"), TaggedExample(("日", "土"), ("O", "O"))])
def test_a_rewriting_that_moves_characters_is_refused(example: TextExample | TaggedExample) -> None:
    with pytest.raises(ValueError, match="2 characters became 4"):
        rewritten(example, lambda text: text * 2)


def test_look_alikes_file(tmp_path: Path) -> None:
    path = tmp_path / "similar_shape.txt"
    # As in the published file: a character twice, itself among its look-alikes, no character, beyond 16 bits.
    path.write_text("\ufeff未,末未朱末\r\n,浅钱\n\n未,味末\n己,𫓧巳\n甲,甲\n", encoding="utf-8")
    assert read_look_alikes(path) == {"未": "末朱味", "己": "𫓧巳"}


def test_traditional_script_is_one_character_for_one() -> None:
    """Of several candidates the usual one, whatever stands beside it: a phrase would give 頭髮."""
    assert to_traditional("侭㓰划后尽干并𫓧头发 a，") == "儘劃劃後盡幹並鈇頭發 a，"
    of_han = "".join(map(chr, (*range(0x3400, 0xA000), *range(0x20000, 0x2A6E0))))
    assert len(to_traditional(of_han)) == len(of_han)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"list: cannot be read: No such file"),
        (b"", r"list: holds no"),
        (b"\n,\n", r"list: holds no"),
        ("未\n".encode(), r"list:1: '未' is no character, a"),
        ("\n未末,朱\n".encode(), r"list:2: '未末,朱'"),
        ("\n未,\n".encode(), r"list:2: '未,"),
        ("未 朱".encode(), r"list:1: '未 朱'"),
        (("未" * 1000).encode(), r"list:1: '未{40}…'"),
        ("天\n".encode("gb18030"), r"list: not UTF-8 at byte 0"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "list"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_look_alikes(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "list"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # would not fit into memory
    with pytest.raises(UserError, match="longer than 64 MiB"):
        read_look_alikes(path)
