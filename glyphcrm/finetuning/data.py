"""The examples of a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.tasks import Example, Splits, TextExample, load_splits, seen_in_train

SAMPLE_SEED = 0  # not that of a run, so that runs differ in what they learn, not in what they are given


@dataclass(frozen=True)
class RunData:
    """The examples of a run."""

    splits: Splits  # those that are used, with the notes that their reader needs
    unseen: list[int] | None  # indices of the test examples that are not in the train set; None if all or none are

    @property
    def sizes(self) -> dict[str, int]:
        """Return how many examples each part has, and "test_unseen" where test texts stand in train."""
        unseen = {} if self.unseen is None else {"test_unseen": len(self.unseen)}
        return {**{name: len(part) for name, part in self.splits.parts.items()}, **unseen}


def load_data(options: FinetuneOptions) -> RunData:
    """Read the task's examples and draw the samples that the options ask for.

    Raises:
        UserError: files are missing or wrong; the samples are too small to train or to score.
    """
    whole = load_splits(options.definition, Path(options.data) if options.data else None)
    notes = list(whole.notes)
    parts: dict[str, tuple[Example, ...]] = {}
    for name, examples in whole.parts.items():
        parts[name] = sample(examples, getattr(options, f"{name}_samples"))
        if len(parts[name]) < len(examples):
            notes.append(f"a sample of {len(parts[name]):,} of {len(examples):,} {name} examples was used")
    # Seen is what stands in the whole train set, so that all sample sizes are scored on the same texts.
    seen = seen_in_train(replace(whole, test=parts["test"]))
    unseen = [i for i in range(len(parts["test"])) if i not in seen] if seen else None
    if unseen == []:
        notes.append("every test text also stands in train: these scores say nothing about other texts")
    return RunData(Splits(**parts, labels=whole.labels, notes=tuple(notes)), unseen or None)


def sample(examples: Sequence[Example], count: int | None) -> tuple[Example, ...]:
    """Return at most `count` of `examples`, in their order, the same ones for every model and seed.

    Of texts each label keeps its share, to within one, and at least one example as far as `count` allows.
    """
    if count is None or count >= len(examples):
        return tuple(examples)
    rng = random.Random(SAMPLE_SEED)
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.label if isinstance(example, TextExample) else "", []).append(index)
    # Each group spreads its members evenly over [0, 1); the first `count` of all are then a proportional choice.
    ranked: list[tuple[float, str, int]] = []
    for label in sorted(groups):
        members = groups[label]
        rng.shuffle(members)
        ranked += [((rank + 0.5) / len(members) if rank else 0.0, label, i) for rank, i in enumerate(members)]
    return tuple(examples[i] for i in sorted(i for _, _, i in sorted(ranked)[:count]))
