"""Scores against numbers worked out by hand, and against another reading of the same rules."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.finetuning.metrics import entity_scores, score
from glyphcrm.tasks import Kind, TaggedExample, TextExample

TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def sentences(*tags: str) -> list[TaggedExample]:
    return [TaggedExample(("天",) * len(row.split()), tuple(row.split())) for row in tags]


def f1(gold: list[TaggedExample], *predicted: str) -> tuple[float, float, float]:
    scores = score(Kind.TAGGING, gold, [tuple(row.split()) for row in predicted])
    return scores["precision"], scores["recall"], scores["f1"]


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", (1, 1, 1)),
        ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", (1 / 2, 1 / 2, 1 / 2)),  # half an entity is none
        ("B-PER B-PER", "B-PER I-PER", (0, 0, 0)),  # two neighbours are not one
        ("B-PER I-PER", "B-PER B-PER", (0, 0, 0)),
        ("O B-PER", "O I-PER", (0, 0, 0)),  # a stray I- is no entity ...
        ("O I-PER O B-LOC", "O I-PER O B-LOC", (1, 1, 1)),  # ... in gold neither
        ("O I-PER", "O B-PER", (0, 0, 0)),
        ("B-PER I-LOC", "B-PER I-LOC", (1, 1, 1)),  # the I- of another type continues nothing
        ("B-PER I-PER", "B-PER I-LOC", (0, 0, 0)),
        ("B-LOC I-LOC I-LOC B-LOC", "B-LOC I-LOC I-LOC B-PER", (1 / 2, 1 / 2, 1 / 2)),  # right ends, wrong type
        ("O O O", "O O O", (0, 0, 0)),  # nothing to find, nothing found
        ("B-PER", "O", (0, 0, 0)),
        ("B-PER O B-LOC O B-PER", "B-PER O O O O", (1, 1 / 3, 1 / 2)),
    ],
)
def test_entities_are_counted_strictly(gold: str, predicted: str, expected: tuple[float, float, float]) -> None:
    assert f1(sentences(gold), predicted) == pytest.approx(expected)


def test_an_entity_does_not_reach_into_the_next_sentence() -> None:
    gold = sentences("O B-PER", "I-PER O")
    assert f1(gold, "O B-PER", "O O") == (1, 1, 1)
    whole = sentences("O B-PER I-PER O")
    assert f1(whole, "O B-PER I-PER O") == (1, 1, 1)  # what gluing windows gives back
    assert f1(whole, "O B-PER O O") == (0, 0, 0)


def strict_entities(tags: tuple[str, ...]) -> set[tuple[str, int, int]]:
    """A second reading of IOB2: each B-x, with the I-x that follow it without a gap."""
    found = set()
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start + 1
            while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                end += 1
            found.add((tag[2:], start, end))
    return found


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=9),
        min_size=1,
        max_size=6,
    )
)
def test_scores_are_those_of_an_independent_count(rows: list[list[tuple[str, str]]]) -> None:
    gold = [TaggedExample(("天",) * len(row), tuple(tag for tag, _ in row)) for row in rows]
    predicted = [tuple(tag for _, tag in row) for row in rows]
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("right", "gold", "predicted")}
    for example, tags in zip(gold, predicted, strict=True):
        ours, theirs = strict_entities(example.tags), strict_entities(tags)
        for name, entities in (("right", ours & theirs), ("gold", ours), ("predicted", theirs)):
            counts[name].update(kind for kind, _, _ in entities)
    right, there, found = (counts[name].total() for name in ("right", "gold", "predicted"))
    scores = score(Kind.TAGGING, gold, predicted)
    assert scores["precision"] == pytest.approx(right / found if found else 0)
    assert scores["recall"] == pytest.approx(right / there if there else 0)
    assert scores["f1"] == pytest.approx(2 * right / (there + found) if there + found else 0)
    for name, values in entity_scores(gold, predicted).items():
        assert values["support"] == counts["gold"][name]
        assert values["recall"] == pytest.approx(counts["right"][name] / max(counts["gold"][name], 1))


def test_accuracy_and_macro_f1_count_labels_that_nobody_predicted() -> None:
    gold = [TextExample("天", label) for label in ("一", "一", "一", "二")]
    scores = score(Kind.SENTENCE, gold, ["一", "一", "一", "一"])
    assert scores == {"accuracy": 0.75, "macro_f1": pytest.approx((2 * 3 / 7 + 0) / 2)}


def test_macro_f1_counts_no_label_that_is_neither_there_nor_predicted() -> None:
    """The test set, and what is left of it without texts of train, may lack labels; all right is 1 there, too."""
    gold = [TextExample("天", label) for label in ("一", "一", "二")]
    assert score(Kind.SENTENCE, gold, ["一", "一", "二"]) == {"accuracy": 1.0, "macro_f1": 1.0}
    wrong = score(Kind.SENTENCE, gold, ["一", "三", "二"])  # a label that is not there still costs
    assert wrong == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx((2 / 3 + 1 + 0) / 3)}


def test_a_missing_prediction_is_an_error() -> None:
    with pytest.raises(ValueError, match="one predicted tag"):
        score(Kind.TAGGING, sentences("B-PER O"), [("B-PER",)])
    with pytest.raises(ValueError, match="0 predictions for 1 examples"):
        score(Kind.PAIR, [TextExample("天", "a", "地")], [])
