"""The comparison of the backends' pre-training: what is further apart than rounding is named."""

from __future__ import annotations

import pytest
import torch

from bench.pretraining_step import MEASURED, Run, compare


def run(measures: float = 1.0, update: float = 1.0, noise: float = 1.0) -> Run:
    updates = {"encoder": torch.tensor([3.0, 4.0]) * update, "attention.key.bias": torch.tensor([noise])}
    return torch.full((2, 3), 5.0) * measures, updates


@pytest.mark.parametrize(
    ("found", "half", "named"),
    [
        (run(measures=1.0009, update=1.04, noise=9.0), None, []),
        (run(measures=1.002), None, [MEASURED]),
        (run(measures=float("nan"), update=0.9), None, [MEASURED, "encoder"]),
        # In bfloat16 twice PyTorch's own distance is allowed on top.
        (run(), run(measures=1.04, update=1.29), []),
        (run(), run(measures=1.06, update=1.35), [MEASURED, "encoder"]),
    ],
)
def test_what_is_too_far_is_named(found: Run, half: Run | None, named: list[str]) -> None:
    runs = {("reference", False): run(), ("triton", False): found}
    if half is not None:
        runs |= {("reference", True): run(measures=1.02, update=1.1), ("triton", True): half}
    kind = "bfloat16" if half is not None else "float32"
    failures = compare(runs)
    assert [failure.rpartition(": ")[0] for failure in failures] == [f"triton, {kind}: {name}" for name in named]
