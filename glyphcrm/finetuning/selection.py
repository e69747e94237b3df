"""When dev is scored, and what its scores decide: the best step, and an early end."""

from __future__ import annotations

from collections.abc import Sequence

from glyphcrm.training.progress import Entry


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Return the steps after which dev is scored, at even distances, the last step among them."""
    evaluations = min(evaluations, steps)
    return {-(-steps * i // evaluations) for i in range(1, evaluations + 1)}


def dev_scores(history: Sequence[Entry], metric: str) -> list[tuple[int, float]]:
    """Return (step, score) of each evaluation so far."""
    return [(int(entry["step"]), entry[metric]) for entry in history if metric in entry]


def best_step(history: Sequence[Entry], metric: str) -> int:
    """Return the step with the best score, the first of several; `history` has an evaluation."""
    return max(dev_scores(history, metric), key=lambda entry: entry[1])[0]


def has_lost_patience(history: Sequence[Entry], metric: str, patience: int) -> bool:
    """Whether the last `patience` scores are no better than the best one before them."""
    scores = [score for _, score in dev_scores(history, metric)]
    return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience
