"""When dev is scored, when a run stops early, and what it shows meanwhile."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from glyphcrm.training.callbacks import ProgressBar


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Return the steps after which dev is scored, at even distances, the last step among them."""
    return {-(-steps * i // evaluations) for i in range(1, evaluations + 1)}


def dev_scores(state: TrainerState, metric: str) -> list[tuple[int, float]]:
    """Return (step, score) of each evaluation so far."""
    return [(int(entry["step"]), entry[metric]) for entry in state.log_history if metric in entry]


class EvaluationPlan(TrainerCallback):
    """Scores dev, and saves a checkpoint, after the steps of a plan; stops when dev has not improved for a while.

    transformers' `EarlyStoppingCallback` forgets, when a run continues, that it had already decided to stop; this one
    decides from the history that checkpoints keep.
    """

    def __init__(self, steps: set[int], metric: str, patience: int) -> None:
        self.steps = steps  # after which to evaluate
        self.metric = metric  # the score's name in the logs; more is better
        self.patience = patience  # evaluations without a better score before the end

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            control.should_log = control.should_evaluate = control.should_save = True

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.is_over(state):
            control.should_training_stop = True

    def is_over(self, state: TrainerState) -> bool:
        """Whether the run with this history needs no further step."""
        scores = [score for _, score in dev_scores(state, self.metric)]
        # The last `patience` scores are no better than the best one before them.
        lost_patience = bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self.patience
        return state.global_step >= max(self.steps) or lost_patience


class FinetuningBar(ProgressBar):
    """One line: step, time left, loss, the last dev scores."""

    def __init__(self, description: str, metric: str) -> None:
        super().__init__(description)
        self._metric = metric
        self._loss = ""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if self._bar is None or logs is None:
            return
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}"
        scores = [f"{score:.4f}" for _, score in dev_scores(state, self._metric)]
        self._bar.set_postfix_str(" ".join([self._loss, "dev" if scores else "", *scores[-5:]]).strip())
