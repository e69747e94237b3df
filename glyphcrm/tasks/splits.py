"""Splitting what comes as one set, and checking what comes as three.

Two texts are the same if nothing that a model reads tells them apart: they are compared after normalisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from glyphcrm.data.permutation import visit
from glyphcrm.errors import LISTED_NAMES, UserError, listed, shown
from glyphcrm.normalization import clusters, normalize
from glyphcrm.tasks.examples import Example, Kind, MissingFilesError, Splits, TaggedExample, Task, TextExample

E = TypeVar("E", TextExample, TaggedExample)

SPLIT_SEED = 0  # of every task: all models and all training seeds see the same parts
DEV_SHARE = TEST_SHARE = 0.1  # of what comes as one set


def load_splits(task: Task, data: Path | None) -> Splits:
    """Read the examples of `task`, check them, and add the notes that hold for any task.

    `data` is the folder that holds the task folders, or the task's own folder; None for a task that brings its files
    along, as the demo tasks do.

    Raises `UserError`: there are no files (says where they can be had), there is a folder that the task does not look
    at, or the content is not what it should be.
    """
    try:
        splits = task.read(_folder(task, data))
    except MissingFilesError as error:
        raise UserError(
            f"{task.title}: {error}; give as --data the folder of these files, or one that holds it as {task.folder}; "
            f"{task.source}"
        ) from None
    check(splits, task)
    return replace(splits, notes=(*splits.notes, *_remarks(splits)))


def split(
    examples: Sequence[E],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = SPLIT_SEED,
    dev: float = DEV_SHARE,
    test: float = TEST_SHARE,
) -> tuple[tuple[E, ...], tuple[E, ...], tuple[E, ...]]:
    """Split into train, dev and test: a pure function of its arguments. The order within a part is that of `examples`.

    Of each label (of tagged examples: of all) a random choice makes up the shares `dev` and `test`. Labels too small
    for that make them up together: each gives one group at most, and keeps one in train. Examples of
    the same group stay in one part, so that nobody is tested on what they learnt, and count for the label of
    its first example. `groups` names each example's; by default the same text is one, of a pair the first text.
    """
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate([normalize(example.text) for example in examples] if groups is None else groups):
        members.setdefault(key, []).append(index)
    by_label: dict[str, list[list[int]]] = {}
    for group in members.values():
        first = examples[group[0]]
        by_label.setdefault(first.label if isinstance(first, TextExample) else "", []).append(group)
    part_of = [0] * len(examples)
    owed = {2: 0.0, 1: 0.0}  # examples that test and dev lack, as the share of a label so far came to less than a group
    for rank, label in enumerate(sorted(by_label)):
        candidates = by_label[label]
        total = sum(map(len, candidates))
        test_begins = total - round(total * test)
        dev_begins = test_begins - round(total * dev)
        by_part: tuple[list[list[int]], ...] = ([], [], [])
        placed = 0
        for k in range(len(candidates)):
            group = candidates[visit(seed, rank, k, len(candidates))]
            by_part[(placed >= dev_begins) + (placed >= test_begins)].append(group)
            placed += len(group)
        lacking = [part for part, share in ((2, test), (1, dev)) if share and not by_part[part]]
        for part in lacking:
            owed[part] += total * (dev, test)[part - 1]
        due = max(lacking, key=lambda part: owed[part], default=0)
        if due and len(by_part[0]) > 1 and 2 * owed[due] >= len(by_part[0][-1]):
            by_part[due].append(by_part[0].pop())
            owed[due] -= len(by_part[due][0])
        for part, groups_of_part in enumerate(by_part):
            for index in itertools.chain(*groups_of_part):
                part_of[index] = part
    train, held, out = (tuple(e for e, number in zip(examples, part_of, strict=True) if number == i) for i in range(3))
    return train, held, out


def deduplicated(examples: Iterable[E]) -> tuple[list[E], tuple[str, ...]]:
    """Return the first example of each text (of a pair: of both texts), and a note if any was dropped."""
    first: dict[Hashable, E] = {}
    dropped = contradicted = 0
    for example in examples:
        kept = first.setdefault(identity(example), example)
        if kept is not example:
            dropped += 1
            contradicted += kept.answer != example.answer
    note = (
        f"examples that repeat the text of an earlier one were dropped: {dropped:,} of {dropped + len(first):,}, "
        f"{contradicted:,} of them with another label"
    )
    return list(first.values()), (note,) if dropped else ()


def identity(example: Example) -> Hashable:
    """Return what is the same for two examples just if a model reads the same."""
    if isinstance(example, TextExample) and example.pair is not None:
        return normalize(example.text), normalize(example.pair)
    return normalize(example.text)


def seen_in_train(splits: Splits) -> set[int]:
    """Return the indices of the test examples whose text (of a pair: both texts) also stands in train."""
    return _seen(splits.test, {identity(example) for example in splits.train})


def text_labels(examples: Iterable[TextExample]) -> tuple[str, ...]:
    """Return the labels in order: by value if all are whole numbers, else as strings."""
    found = sorted({example.label for example in examples})
    numeric = all(label.isascii() and label.isdecimal() and len(label) < 10 for label in found)
    return tuple(sorted(found, key=int) if numeric else found)


def tag_labels(examples: Iterable[TaggedExample]) -> tuple[str, ...]:
    """Return "O", then B-x and I-x for each type x in alphabetical order."""
    types = _classes_of(examples) - {""}
    return ("O", *(f"{prefix}-{kind}" for kind in sorted(types) for prefix in "BI"))


def tagged_splits(parts: Iterable[Iterable[TaggedExample]], notes: Iterable[str]) -> Splits:
    """Return train, dev and test with their labels, and a further note if an I-x follows neither B-x nor I-x."""
    train, dev, test = map(tuple, parts)
    stray = sum(len(_stray(example)) for example in (*train, *dev, *test))
    note = (f"I- tags that follow no tag of their type are no entities to the scores, and kept as they are: {stray:,}",)
    return Splits(train, dev, test, tag_labels(train), (*notes, *note * bool(stray)))


def repeats_note(examples: Sequence[TextExample]) -> tuple[str, ...]:
    """Return a note if texts repeat: where `split` splits them, it keeps them together."""
    repeated = len(examples) - len({identity(example) for example in examples})
    note = (
        f"texts that repeat an earlier one, white space aside, are in the same part: {repeated:,} of {len(examples):,}"
    )
    return (note,) if repeated else ()


def check(splits: Splits, task: Task) -> None:
    """Raise `UserError` if a part cannot be learnt from or scored.

    That is one that is empty, or of whose entities more begin with I- than with B-; a train with one label (no entity);
    a dev or test with a label that train lacks.
    """
    for name, part in splits.parts.items():
        if not part:
            raise UserError(f"{task.title}: {name} is empty{_too_few(splits)}, or a file for each part")
    learnt = _classes_of(splits.train)
    if task.kind is Kind.TAGGING:
        if learnt == {""}:
            raise UserError(f"{splits.train[0].where}: no entity in train, all tags are O; nothing can be learnt")
        tagged = (example for example in splits.train if isinstance(example, TaggedExample))
        if not any(clusters("".join(example.characters)) for example in tagged):
            raise UserError(f"{splits.train[0].where}: train has white space and the like alone; give it characters")
    elif len(learnt) < 2:
        raise UserError(
            f"{splits.train[0].where}: train has one label only, {shown(min(learnt))}; give examples of two or more"
        )
    for name, part in (("dev", splits.dev), ("test", splits.test)):
        for example in part:
            if unknown := _classes(example) - learnt:
                _refuse(example, min(unknown), name, learnt)
    for part in splits.parts.values():
        _check_beginnings([example for example in part if isinstance(example, TaggedExample)])


def _too_few(splits: Splits) -> str:
    examples = [example for part in splits.parts.values() for example in part]
    distinct = len({normalize(example.text) for example in examples})
    if distinct == len(examples):
        return "; give more examples"
    return (
        f": examples with the same text, or pairs with the same first text, stay together, and of {len(examples):,} "
        f"examples {distinct:,} differ in it; give more that differ"
    )


def _check_beginnings(part: Sequence[TaggedExample]) -> None:
    """Refuse other schemes than IOB2, by which scores are counted: in IOB1 and IO few entities begin with B-."""
    begun = sum(tag.startswith("B-") for example in part for tag in example.tags)
    stray = [(example, position) for example in part for position in _stray(example)]
    if len(stray) > max(begun, 1):  # a single one, in a small part, is a slip
        where = _line_of(*stray[0])
        raise UserError(f"{where}: entities begin with I- (IOB1 or IO); write B- on the first character of each")


def _stray(example: TaggedExample) -> list[int]:
    """The positions of each I-x that follows neither B-x nor I-x."""
    follows = zip(("O", *example.tags), example.tags, strict=False)
    return [i for i, (before, tag) in enumerate(follows) if tag.startswith("I-") and before[2:] != tag[2:]]


def _refuse(example: Example, label: str, part: str, learnt: set[str]) -> None:
    where = example.where
    if isinstance(example, TaggedExample):
        position = next(i for i, tag in enumerate(example.tags) if tag[2:] == label)
        where, label = _line_of(example, position), example.tags[position]
    known = listed(sorted(learnt - {""}))
    raise UserError(f"{where}: label {shown(label)} of {part} does not occur in train; train has {known}")


def _line_of(example: TaggedExample, position: int) -> str:
    file, _, line = example.where.rpartition(":")
    return f"{file}:{int(line) + position}" if line.isdecimal() else example.where


def _classes(example: Example) -> set[str]:
    """The label; of tags the types of the entities, and "" for O."""
    return {example.label} if isinstance(example, TextExample) else {tag[2:] for tag in set(example.tags)}


def _classes_of(examples: Iterable[Example]) -> set[str]:
    return {name for example in examples for name in _classes(example)}


def _remarks(splits: Splits) -> tuple[str, ...]:
    answers: dict[Hashable, set[Hashable]] = {}
    for example in splits.train:
        answers.setdefault(identity(example), set()).add(example.answer)
    notes = list(_spelling_notes(splits))
    if contradicted := sum(len(found) > 1 for found in answers.values()):
        notes.append(f"train gives {contradicted:,} of its {len(answers):,} distinct texts more than one label")
    for name, part in (("dev", splits.dev), ("test", splits.test)):
        if seen := len(_seen(part, answers.keys())):
            notes.append(f"train also holds {seen:,} of the {len(part):,} {name} texts")
        if absent := _classes_of(splits.train) - _classes_of(part):
            notes.append(f"{name} has no example of {listed(sorted(absent))}")
    return tuple(notes)


def _spelling_notes(splits: Splits) -> Iterable[str]:
    examples = (example for part in splits.parts.values() for example in part)
    readings = dict.fromkeys(spelling for example in examples for spelling in example.spellings)
    if readings:
        pairs = [f"{shown(written)} as {shown(label)}" for written, label in readings]
        more = f" and {len(pairs) - LISTED_NAMES} more" if len(pairs) > LISTED_NAMES else ""
        yield f"labels were read without what cannot be seen in them: {', '.join(pairs[:LISTED_NAMES])}{more}"


def _seen(examples: Sequence[Example], known: Set[Hashable]) -> set[int]:
    return {index for index, example in enumerate(examples) if identity(example) in known}


def _folder(task: Task, data: Path | None) -> Path:
    if not task.folder:
        if data is not None:
            raise UserError(f"--data {data}: {task.name} reads no folder, it has its own text; leave it out")
        return Path()
    if data is None:
        raise MissingFilesError("no --data was given")
    for folder in (data / task.folder, data):
        if folder.is_dir():
            return folder
    raise MissingFilesError(f"no folder {data}")
