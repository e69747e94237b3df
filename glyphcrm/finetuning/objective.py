"""What fine-tuning asks of a model: the labels of a task, and its score on dev."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.finetuning.encoding import Feature, Integers
from glyphcrm.finetuning.prediction import choose, collator_for
from glyphcrm.finetuning.selection import best_step, dev_scores, has_lost_patience
from glyphcrm.finetuning.training_order import TrainingOrder
from glyphcrm.training.machine import Machine
from glyphcrm.training.progress import Entry
from glyphcrm.training.step_loader import Batch, PaddedMicroBatches


class FinetuningObjective:
    """The `Objective` of a model with a linear head, on features.

    The loss is the mean cross-entropy over all labels of an optimiser step, over all its micro-batches and processes:
    how a step is cut up does not change it. It is computed here, from the logits, for every model alike.

    Args:
        samples: the features of the run, in their order.
        dev: those of dev.
        score_dev: takes the indices that `choose` returns for `dev`.
        metric: the score that selects, as in the logs ("eval_..."); more is better.
        patience: evaluations without a better score before the end.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        samples: TrainingOrder,
        micro_batch_size: int,
        machine: Machine,
        dev: Sequence[Feature],
        score_dev: Callable[[Sequence[Integers]], dict[str, float]],
        metric: str,
        patience: int,
    ) -> None:
        self._collator = collator_for(model)
        self.samples, self.micro_batches = samples, PaddedMicroBatches(self._collator, micro_batch_size)
        self.sums = torch.zeros(0, dtype=torch.float64, device=machine.device)
        self._machine, self._batch_size = machine, 2 * micro_batch_size
        self._dev, self._score_dev, self._metric, self._patience = dev, score_dev, metric, patience

    def counts(self, batch: Batch) -> Tensor:
        """Return how many labels there are: (1,) int64."""
        return (batch["labels"] != IGNORED_LABEL).sum()[None]

    def loss(self, model: PreTrainedModel, batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
        """Return the cross-entropy, (), summed over the labels of this micro-batch, divided by those of the step."""
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        labels = batch["labels"].flatten()
        total = F.cross_entropy(logits.float().flatten(0, -2), labels, ignore_index=IGNORED_LABEL, reduction="sum")
        return total / totals[0]

    def entry(self, sums: Sequence[float], seconds: float) -> Entry:
        """Nothing beside the loss."""
        return {}

    def validate(self, model: PreTrainedModel) -> Entry:
        """Return the scores on dev."""
        scores = self._score_dev(self.choose(model, self._dev, "dev"))
        return {f"eval_{name}": value for name, value in scores.items()}

    def choose(self, model: PreTrainedModel, features: Sequence[Feature], description: str) -> list[Integers]:
        """As `glyphcrm.finetuning.prediction.choose`, with this run's precision and processes."""
        shown = description if self._machine.is_first else None
        with self._machine.autocast():
            return choose(model, features, self._collator, self._batch_size, shown)

    def is_over(self, history: Sequence[Entry]) -> bool:
        """Whether dev has not improved for too long; a run that continues decides from the same history."""
        return has_lost_patience(history, self._metric, self._patience)

    def kept(self, steps: Sequence[int], history: Sequence[Entry]) -> set[int]:
        """Keep the newest one and the best."""
        best = {best_step(history, self._metric)} if dev_scores(history, self._metric) else set()
        return {steps[-1]} | best

    def status(self, history: Sequence[Entry]) -> str:
        """Return the last loss and the last dev scores."""
        losses = [f"loss {entry['loss']:.3f}" for entry in reversed(history) if "loss" in entry]
        scores = [f"{score:.4f}" for _, score in dev_scores(history, self._metric)]
        return " ".join([*losses[:1], *(["dev"] if scores else []), *scores[-5:]])

    def remark(self, entry: Entry) -> str | None:
        """Nothing: the bar shows the scores."""
        return None
