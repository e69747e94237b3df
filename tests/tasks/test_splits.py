from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.errors import UserError
from glyphcrm.tasks import Kind, Splits, TaggedExample, Task, TextExample, load_splits, seen_in_train
from glyphcrm.tasks.splits import deduplicated, split, tag_labels, tagged_splits, text_labels

labels = st.sampled_from(["a", "b", "c"])
# Few texts, some of which differ by white space alone.
repeating = st.lists(
    st.builds(TextExample, st.sampled_from(["一", "二", " 一", "二\u3000", "三", "四五"]), labels), max_size=40
)
pairs = st.lists(
    st.builds(TextExample, st.sampled_from(["一", "二", "三"]), labels, st.sampled_from(["甲", "乙", "乙 "])),
    max_size=40,
)


def distinct(own: list[str]) -> list[TextExample]:
    return [TextExample(f"第{i}句", label, where=f"a:{i}") for i, label in enumerate(own)]


def task(splits: Splits, kind: Kind = Kind.SENTENCE) -> Task:
    return Task(name="t", title="T", kind=kind, source="nowhere", read=lambda _folder: splits)


@given(st.lists(labels, max_size=150), st.integers(0, 2**32), st.sampled_from([(0.1, 0.1), (0.1, 0.0), (0.25, 0.5)]))
def test_shares_hold_for_each_label(own: list[str], seed: int, shares: tuple[float, float]) -> None:
    examples = distinct(own)
    parts = split(examples, seed=seed, dev=shares[0], test=shares[1])
    assert sorted((e for part in parts for e in part), key=examples.index) == examples
    assert all(list(part) == sorted(part, key=examples.index) for part in parts)
    for label, count in Counter(own).items():
        for part, share in zip(parts, (1 - sum(shares), *shares), strict=True):
            assert abs(sum(e.label == label for e in part) - share * count) <= 1
    assert split(examples, seed=seed, dev=shares[0], test=shares[1]) == parts


def test_the_split_is_random_and_the_same_everywhere() -> None:
    examples = distinct(["a"] * 30)
    _, dev, test = split(examples)
    assert [e.where for e in (*dev, *test)] == ["a:3", "a:6", "a:29", "a:16", "a:25", "a:26"]
    chosen = Counter(e.where for seed in range(300) for e in split(examples, seed=seed)[2])
    assert len(chosen) == 30 and min(chosen.values()) > 10 and max(chosen.values()) < 50, (
        "30 expected of each, standard deviation 5.2"
    )


@given(st.one_of(repeating, pairs))
def test_what_reads_the_same_stays_together(examples: list[TextExample]) -> None:
    parts = split(examples, dev=0.3, test=0.3)
    assert Counter(e for part in parts for e in part) == Counter(examples)
    texts = [{e.text.strip() for e in part} for part in parts]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


@given(st.lists(st.one_of(st.integers(1, 5), st.integers(1, 40)), max_size=60), st.integers(0, 2**32))
def test_labels_of_any_sizes_make_up_the_shares_together(sizes: list[int], seed: int) -> None:
    parts = split(distinct([f"类{i}" for i, size in enumerate(sizes) for _ in range(size)]), seed=seed)
    assert len({e.label for e in parts[0]}) == len(sizes)  # each keeps one in train
    # Large labels round, by a half each; labels of one example have none to give.
    most = 2 + sum(0.5 * (size > 5) + 0.1 * (size == 1) for size in sizes)
    assert all(abs(len(part) - 0.1 * sum(sizes)) <= most for part in parts[1:])


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60)), max_size=200), st.integers(0, 2**32))
def test_groups_of_small_labels_stay_together(own: list[tuple[int, int]], seed: int) -> None:
    examples = [TextExample(f"第{i}句", f"类{label}") for i, (label, _) in enumerate(own)]
    groups = {example: group for example, (_, group) in zip(examples, own, strict=True)}
    parts = split(examples, groups=list(groups.values()), seed=seed)
    assert split(examples, groups=list(groups.values()), seed=seed) == parts
    assert Counter(e for part in parts for e in part) == Counter(examples)
    found = [{groups[e] for e in part} for part in parts]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    first = {group: example.label for example, group in reversed(groups.items())}  # a group counts for this label
    assert {first[group] for group in found[0]} == set(first.values())


@pytest.mark.parametrize(("labels", "each", "large"), [(150, 4, 0), (50, 4, 1000), (150, 3, 0), (40, 2, 100)])
def test_many_small_labels(labels: int, each: int, large: int) -> None:
    parts = split(distinct([f"类{i % labels}" for i in range(labels * each)] + ["大"] * large))
    small = [Counter(e.label for e in part if e.label != "大") for part in parts]
    assert len(small[0]) == labels
    for part, found in zip(parts[1:], small[1:], strict=True):
        assert len(part) == pytest.approx(0.1 * (labels * each + large), abs=1)
        assert found.total() == len(found) == pytest.approx(0.1 * labels * each, abs=1)  # one of each at most


def test_groups_of_ones_own() -> None:
    examples = [TaggedExample((str(i % 10),), ("O",), f"a:{i}") for i in range(200)]
    parts = split(examples, groups=[i // 5 for i in range(200)])
    articles = [{int(e.where[2:]) // 5 for e in part} for part in parts]
    assert [len(part) for part in parts] == [160, 20, 20]
    assert [len(found) for found in articles] == [32, 4, 4] and len(set.union(*articles)) == 40


@given(st.one_of(repeating, pairs))
def test_deduplicated(examples: list[TextExample]) -> None:
    kept, notes = deduplicated(examples)
    read = [(e.text.strip(), (e.pair or "").strip()) for e in examples]
    assert kept == [e for i, e in enumerate(examples) if read[i] not in read[:i]]
    changed = sum(e.label != examples[read.index(text)].label for e, text in zip(examples, read, strict=True))
    dropped = len(examples) - len(kept)
    assert bool(notes) == bool(dropped)
    assert not notes or f": {dropped} of {len(examples)}, {changed} of them" in notes[0]


@given(pairs, pairs)
def test_seen_in_train(train: list[TextExample], test: list[TextExample]) -> None:
    splits = Splits(tuple(train), (), tuple(test), ("a", "b", "c"))
    expected = {
        i
        for i, tested in enumerate(test)
        if any((e.text, str(e.pair).strip()) == (tested.text, str(tested.pair).strip()) for e in train)
    }
    assert seen_in_train(splits) == expected


def test_notes_that_hold_for_any_task() -> None:
    train = (*distinct(["a", "b", "c"]), TextExample("第 0句", "b"))
    splits = Splits(
        train, (TextExample("第1句", "a"),), (TextExample("新", "b"), TextExample("第2句", "c")), ("a", "b", "c")
    )
    assert load_splits(task(splits), None).notes == (
        "train gives 1 of its 3 distinct texts more than one label",
        "train also holds 1 of the 1 dev texts",
        "dev has no example of 'b', 'c'",
        "train also holds 1 of the 2 test texts",
        "test has no example of 'a'",
    )


def test_label_order() -> None:
    assert text_labels(distinct(["10", "9", "2", "10"])) == ("2", "9", "10")
    assert text_labels(distinct(["10", "9", "二"])) == ("10", "9", "二")
    tagged = [TaggedExample(("一", "二"), ("I-PER", "O")), TaggedExample(("一", "二"), ("B-LOC", "I-LOC"))]
    assert tag_labels(tagged) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_labels_that_cannot_be_learnt() -> None:
    both, one = tuple(distinct(["a", "b"])), tuple(distinct(["a", "a"]))
    with pytest.raises(UserError, match="T: dev is empty"):
        load_splits(task(Splits(both, (), both, ("a", "b"))), None)
    few = split([TextExample(f"问{i % 2}", "ab"[i % 3 // 2], f"答{i}") for i in range(600)])
    with pytest.raises(UserError, match=r"T: dev is empty: .* pairs with the same first text.* 600 examples 2 differ"):
        load_splits(task(Splits(*few, ("a", "b")), Kind.PAIR), None)
    with pytest.raises(UserError, match="a:0: train has one label only, 'a'"):
        load_splits(task(Splits(one, one, one, ("a",))), None)
    other = (*both, TextExample("三", "d", where="test.tsv:9"))
    with pytest.raises(UserError, match=r"test\.tsv:9: label 'd' of test does not occur in train; train has 'a', 'b'$"):
        load_splits(task(Splits(both, both, other, ("a", "b"))), None)
    many = tuple(distinct([f"这一列不是标签{'字' * 90}{i}" for i in range(200)]))
    with pytest.raises(UserError) as caught:
        load_splits(task(Splits(many[:100], many[100:], many[100:], ())), None)
    assert len(str(caught.value)) < 1500


def test_tags_that_cannot_be_learnt() -> None:
    def tagged(*tags: str) -> tuple[TaggedExample, ...]:
        return (TaggedExample(("中",), ("O",), "f:1"), TaggedExample(tuple("中" * len(tags)), tags, "f:3"))

    splits = Splits(tagged("B-LOC", "B-PER"), tagged("O", "I-LOC"), tagged("O", "O", "I-ORG"), ())
    with pytest.raises(UserError, match="f:5: label 'I-ORG' of test does not occur in train; train has 'LOC', 'PER'"):
        load_splits(task(splits, Kind.TAGGING), None)
    splits = Splits(tagged("O"), tagged("O"), tagged("O"), ())
    with pytest.raises(UserError, match="f:1: no entity in train"):
        load_splits(task(splits, Kind.TAGGING), None)
    unseen = (TaggedExample((" ", "\u200b"), ("O", "B-LOC"), "f:1"),)
    with pytest.raises(UserError, match="f:1: train has white space"):
        load_splits(task(Splits(unseen, tagged("O"), tagged("O"), ()), Kind.TAGGING), None)


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        ("train", ["O I-PER I-PER O I-LOC", "O O"]),  # IO
        ("train", ["I-PER I-PER B-PER I-PER O I-PER", "I-LOC O"]),  # IOB1: B- between neighbours alone
        ("dev", ["O I-PER", "I-PER O"]),
        ("test", ["O I-PER I-PER I-LOC B-LOC"]),
    ],
)
def test_entities_that_begin_with_i_are_refused(part: str, rows: list[str]) -> None:
    """A score would be 0 even of what is all right, as it is counted by IOB2."""
    good = "B-PER I-PER O B-LOC I-LOC"
    texts = {name: [good] for name in ("train", "dev", "test")} | {part: ["O O", *rows]}
    parts = [
        tuple(TaggedExample(tuple("中" * len(row.split())), tuple(row.split()), f"{name}.bio:7") for row in texts[name])
        for name in texts
    ]
    first = next(row.split() for row in rows if "I-" in row)
    line = 7 + next(i for i, tag in enumerate(first) if tag.startswith("I-"))
    with pytest.raises(UserError, match=rf"^{part}\.bio:{line}: entities begin with I- \(IOB1 or IO\); write B- on"):
        load_splits(task(tagged_splits(parts, ()), Kind.TAGGING), None)


def test_a_single_slip_in_a_small_part_is_no_other_scheme() -> None:
    slip = TaggedExample(("中", "中"), ("O", "I-PER"), "dev.bio:1")
    whole = TaggedExample(("中",) * 3, ("B-PER", "I-PER", "O"), "train.bio:1")
    notes = load_splits(task(tagged_splits(((whole,), (slip,), (whole,)), ()), Kind.TAGGING), None).notes
    assert any("no entities to the scores" in note and note.endswith(": 1") for note in notes)


def test_a_few_stray_tags_and_parts_without_entities_are_taken() -> None:
    rows = (["B-PER I-PER O B-LOC", "O I-PER I-PER B-LOC I-PER"], ["O O"], ["B-LOC O", "I-PER"])
    parts = [tuple(TaggedExample(tuple("中" * len(r.split())), tuple(r.split()), "f:1") for r in part) for part in rows]
    notes = load_splits(task(tagged_splits(parts, ()), Kind.TAGGING), None).notes
    assert notes[0] == "I- tags that follow no tag of their type are no entities to the scores, and kept as they are: 3"


def test_missing_folder(tmp_path: Path) -> None:
    files = Task(name="t", title="T", kind=Kind.SENTENCE, folder="t", source="it is at home", read=lambda folder: 1 / 0)
    for data, message in ((None, "no --data was given"), (tmp_path / "no", "no folder")):
        with pytest.raises(UserError, match=f"T: {message}.*it is at home"):
            load_splits(files, data)


def test_a_folder_that_the_task_does_not_look_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="t reads no folder"):
        load_splits(Task(name="t", title="T", kind=Kind.SENTENCE, source="", read=lambda folder: 1 / 0), tmp_path)
