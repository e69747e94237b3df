"""transformers' `Trainer`, with GlyphCRM's loss over accumulated batches and whole checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor
from transformers import TrainerControl, TrainerState

from glyphcrm.modeling import GlyphCRMPreTrainedModel
from glyphcrm.modeling.glyph_vectors import SharedGlyphs
from glyphcrm.pretraining.measures import Measures
from glyphcrm.training.callbacks import ProgressBar
from glyphcrm.training.resumable_trainer import ResumableTrainer

# Where HanGlyph can be called by itself; others wrap its weights.
PLAIN_OR_DDP = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class PretrainingBar(ProgressBar):
    """One line: step, time left, MLM loss and accuracy, NSP accuracy, tokens per second, distinct characters."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if self._bar is None or logs is None:
            return
        if "mlm_loss" in logs:
            self._bar.set_postfix_str(
                f"mlm {logs['mlm_loss']:.3f} acc {logs['mlm_accuracy']:.1%} "
                f"nsp {logs['nsp_loss']:.3f} acc {logs['nsp_accuracy']:.1%} "
                f"{logs['tokens_per_second']:.0f} tokens/s {logs['distinct_characters']:.0f} distinct"
            )
        elif "eval_mlm_loss" in logs:
            self._bar.write(
                f"step {state.global_step}: validation mlm {logs['eval_mlm_loss']:.4f} "
                f"acc {logs['eval_mlm_accuracy']:.1%}, nsp {logs['eval_nsp_loss']:.4f} "
                f"acc {logs['eval_nsp_accuracy']:.1%}"
            )


class PretrainingTrainer(ResumableTrainer):
    """Trains a `GlyphCRMForPreTraining` or a `BertBaseline` on batches of `PretrainingCollator`.

    * The MLM loss is the mean over all labels of an optimiser step, over all its micro-batches and
      processes; the NSP loss likewise over its pairs. How a step is cut up does not change it.
    * HanGlyph runs once for all micro-batches of an optimiser step.
    * Logs carry MLM and NSP loss and accuracy, real tokens per second, and distinct characters per batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the labels of a whole step
        self.loss_is_scaled_for_ga = True
        self._measures = Measures(self.args.device)
        self._waiting: list[dict[str, Tensor]] = []  # micro-batches of a step, before HanGlyph has run for them
        self._glyphs: SharedGlyphs | None = None
        self._left = 0  # of the micro-batches that share them

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of an optimiser step, which may share glyphs, and their number of labels."""
        batches, labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        model = self.accelerator.unwrap_model(self.model)
        shares = isinstance(model, GlyphCRMPreTrainedModel) and self.accelerator.distributed_type in PLAIN_OR_DDP
        self._waiting = batches if shares and len(batches) > 1 else []
        self._glyphs = None
        return batches, labels

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run a micro-batch forward and backward; after the last one of an optimiser step, HanGlyph backward."""
        if self._waiting:
            model.train()
            batches = [self._prepare_inputs({"glyph_ids": batch["glyph_ids"]}) for batch in self._waiting]
            with self.compute_loss_context_manager():
                self._glyphs = SharedGlyphs(self.accelerator.unwrap_model(model).glyph_model, batches)
            self._left, self._waiting = len(batches), []
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._glyphs is not None:
            self._left -= 1
            if self._left == 0:
                self._glyphs.backward()
                self._glyphs = None
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss, scaled for DDP's mean over processes."""
        outputs = model(**(self._glyphs.arguments(inputs) if self._glyphs is not None else inputs))
        self._measures.add(inputs, outputs)
        assert num_items_in_batch is not None
        share = inputs["prediction_index"].numel() * self.accelerator.num_processes / num_items_in_batch
        loss = outputs.mlm_loss * share + outputs.nsp_loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: transformers' formula, parameters times tokens, does not hold where HanGlyph reads characters."""
        return 0

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
        model.eval()
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                outputs = model(**inputs)
            measures.add(inputs, outputs)
        means = measures.take()
        means["loss"] = means["mlm_loss"] + means["nsp_loss"]
        self._check_finite("validation loss", means["loss"])
        shown = ("loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy")
        metrics = {f"{metric_key_prefix}_{name}": means[name] for name in shown}
        self.log({**metrics, "seconds": self._seconds_until(started)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - started  # validation is no training time
        return metrics
