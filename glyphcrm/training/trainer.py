"""transformers' `Trainer`, with GlyphCRM's loss over accumulated batches and whole checkpoints."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from glyphcrm.training.measures import Measures
from glyphcrm.training.resumable_trainer import ResumableTrainer


class PretrainingTrainer(ResumableTrainer):
    """Trains a `GlyphCRMForPreTraining` or a `BertBaseline` on batches of `PretrainingCollator`.

    * The MLM loss is the mean over all labels of an optimiser step, over all its micro-batches and
      processes; the NSP loss likewise over its pairs. How a step is cut up does not change it.
    * Logs carry MLM and NSP loss and accuracy, real tokens per second, and distinct characters per batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the labels of a whole step
        self.loss_is_scaled_for_ga = True
        self._measures = Measures(self.args.device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss, scaled for DDP's mean over processes."""
        outputs = model(**inputs)
        config = self.accelerator.unwrap_model(model).config
        self._measures.add(inputs, outputs, config.vocab_size, config.unk_token_id)
        assert num_items_in_batch is not None
        share = inputs["label_index"].numel() * self.accelerator.num_processes / num_items_in_batch
        loss = outputs.mlm_loss * share + outputs.nsp_loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add this project's measures to a training log."""
        if "loss" in logs:
            measures = self._measures.take()
            measures["tokens_per_second"] = measures.pop("tokens") / (time.perf_counter() - self._since)
            logs.update(measures)
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the losses and accuracies on the validation samples."""
        started = time.perf_counter()
        measures = Measures(self.args.device)
        model = self.model
        assert model is not None
        config = self.accelerator.unwrap_model(model).config
        model.eval()
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                outputs = model(**inputs)
            measures.add(inputs, outputs, config.vocab_size, config.unk_token_id)
        means = measures.take()
        means["loss"] = means["mlm_loss"] + means["nsp_loss"]
        self._check_finite("validation loss", means["loss"])
        shown = ("loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy")
        metrics = {f"{metric_key_prefix}_{name}": means[name] for name in shown}
        self.log({**metrics, "seconds": self._seconds_until(started)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - started  # validation is no training time
        return metrics
