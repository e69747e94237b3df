"""A part of the examples, when all would take too long: the same one for every model and seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from glyphcrm.tasks import Example, TextExample

SEED = 0  # not that of a run, so that runs differ in what they learn, not in what they are given


def sample(examples: Sequence[Example], count: int | None) -> tuple[Example, ...]:
    """Return at most `count` of `examples`, in their order.

    Of texts each label keeps its share, to within one, and at least one example as far as `count` allows.
    """
    if count is None or count >= len(examples):
        return tuple(examples)
    rng = random.Random(SEED)
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
