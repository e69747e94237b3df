"""Tags of what cannot be seen, against another account of the same rules, and in cases that people meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.finetuning.metrics import score
from glyphcrm.finetuning.unseen import NOBODY, settled, speakers
from glyphcrm.tasks import Kind, TaggedExample

TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_who_speaks_for_a_line() -> None:
    assert speakers(["天", " ", "e", "\u0301", "\u200b", "地"]) == [0, NOBODY, 2, 2, NOBODY, 5]
    assert speakers(["\u1112", "\u1161", "\u11ab"]) == [0, 0, 0]
    assert speakers(["\u3000", "\u0301"]) == [NOBODY, 1]  # an accent without a letter is a character
    assert speakers(["e", "\u0301a", "NBA", " "]) == [0, 1, 2, NOBODY]
    assert speakers(["e", "\u200b", "\u0301"]) == [0, 0, 0]
    assert speakers(["天", "地"], read={1}) == [NOBODY, 1]
    assert speakers([]) == []


@pytest.mark.parametrize(
    ("lines", "tags", "expected"),
    [
        ("Tom Lee来", "B I I I I I I O", "B I I I I I I O"),
        ("Tom Lee来", "B I I O B I I O", "B I I O B I I O"),
        ("北京 好", "B I I O", "B I O O"),  # nobody can tell where behind it an entity ends
        (" 北京好", "B I I O", "O B I O"),  # nor where before it one begins
        ("好\u3000好", "O B O", "O O O"),
        ("北京 上海", "B I B I I", "B I O B I"),
        ("北 京", "B O I", "B I I"),
        ("好 京", "O O I", "O O I"),  # a stray I- stays one
        ("好 京", "O I I", "O O I"),
        ("e\u0301a", "B O I", "B I I"),
        ("e\u0301a", "O B I", "O O B"),
        ("e\u0301 a", "B I I I", "B I I I"),
    ],
)
def test_what_is_not_seen_follows_what_is(lines: str, tags: str, expected: str) -> None:
    def full(short: str) -> tuple[str, ...]:
        return tuple(tag if tag == "O" else f"{tag}-PER" for tag in short.split())

    assert settled(full(tags), speakers(lines)) == full(expected)
    example = TaggedExample(tuple(lines), full(tags))
    if "B" in tags:
        assert score(Kind.TAGGING, [example], [full(expected)])["f1"] == 1.0


@given(st.data(), st.lists(st.sampled_from(TAGS), max_size=14))
def test_seen_lines_keep_their_entities(data: st.DataObject, tags: list[str]) -> None:
    follows: list[int] = []
    for i in range(len(tags)):
        letters = [follows[-1]] if follows and follows[-1] != NOBODY else []
        follows.append(data.draw(st.sampled_from([i, NOBODY, *letters])))
    result = settled(tags, follows)
    assert settled(result, follows) == result
    # Each line has the number of the entity that it belongs to; stray lines have none.
    numbers: list[int | None] = []
    for i, tag in enumerate(tags):
        continues = i > 0 and tag[:2] == "I-" and tags[i - 1][2:] == tag[2:]
        numbers.append(i if tag[:2] == "B-" else numbers[-1] if continues else None)
    begun: set[int] = set()
    last = "O"
    for i, (line, number) in enumerate(zip(follows, numbers, strict=True)):
        if line == i:
            first = number is not None and number not in begun
            assert result[i] == (f"B-{tags[i][2:]}" if first else tags[i])
            begun |= {number} if number is not None else set()
            last = result[i]
        elif line == NOBODY:
            behind = next((result[j] for j in range(i, len(tags)) if follows[j] == j), "O")
            goes_on = behind[:2] == "I-" and last[2:] == behind[2:]
            assert result[i] == (behind if goes_on else "O")
        else:
            assert result[i] == ("O" if result[line] == "O" else f"I-{result[line][2:]}")
