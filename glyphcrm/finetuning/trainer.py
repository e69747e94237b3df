"""transformers' `Trainer` for one seed of one task: the loss, and the score on dev."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.finetuning.encoding import Feature, Integers
from glyphcrm.finetuning.prediction import choose
from glyphcrm.training.resumable_trainer import ResumableTrainer


class FinetuningTrainer(ResumableTrainer):
    """Trains a model with a linear head on features; validates with the function it is given.

    The loss is the mean cross-entropy over all labels of an optimiser step, over all its micro-batches and processes:
    how a step is cut up does not change it. It is computed here, from the logits, for every model alike. `score_dev`
    takes the indices that `choose` returns for the features of `dev`.
    """

    def __init__(
        self,
        *args: Any,
        dev: Sequence[Feature],
        score_dev: Callable[[Sequence[Integers]], dict[str, float]],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, compute_loss_func=mean_cross_entropy, **kwargs)
        self.dev = dev
        self.score_dev = score_dev

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the scores on dev."""
        started = time.perf_counter()
        scores = self.score_dev(self.choose(self.dev, "dev"))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - started  # validation is no training time
        return metrics

    def choose(self, features: Sequence[Feature], description: str) -> list[Integers]:
        """As `glyphcrm.finetuning.prediction.choose`, with this run's precision and processes."""
        model: Any = self.model
        shown = description if self.is_local_process_zero() else None
        with self.accelerator.autocast():
            return choose(model, features, self.data_collator, self.args.per_device_eval_batch_size, shown)  # type: ignore[arg-type]


def mean_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the cross-entropy summed over the labels of this micro-batch, divided by those of the whole step."""
    logits = outputs.logits.float().flatten(0, -2)
    total = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
    count = (labels != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp_min(1)
