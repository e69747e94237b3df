"""transformers' `Trainer`, with GlyphCRM's loss over accumulated batches and whole checkpoints."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Trainer

from glyphcrm.errors import UserError
from glyphcrm.training.measures import Measures
from glyphcrm.training.run_directory import mark_complete

# How torch.save says that a file could not be written.
TORCH_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "iostream error")


class TrainingDiverged(UserError):
    """The loss or a gradient is no longer a finite number."""


class PretrainingTrainer(Trainer):
    """Trains a `GlyphCRMForPreTraining` on batches of `PretrainingCollator`.

    * The MLM loss is the mean over all labels of an optimiser step, over all its micro-batches and
      processes; the NSP loss likewise over its pairs. How a step is cut up does not change it.
    * HanGlyph has a learning rate of its own.
    * Logs carry MLM and NSP loss and accuracy, real tokens per second, distinct characters per batch.
    * A checkpoint counts once it is whole; a loss that is not finite stops the run before it is saved.
    """

    def __init__(self, *args: Any, glyph_learning_rate: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.glyph_learning_rate = glyph_learning_rate
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the labels of a whole step
        self.loss_is_scaled_for_ga = True
        self._measures = Measures(self.args.device)
        self._since = time.perf_counter()

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser: two learning rates, and no weight decay on biases and norms."""
        trained = model or self.model
        assert trained is not None
        decayed = set(self.get_decay_parameter_names(trained))
        # The encoder's groups come first: it is their learning rate that the logs show.
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {
            (is_glyph, is_decayed): [] for is_glyph in (False, True) for is_decayed in (True, False)
        }
        for name, parameter in trained.named_parameters():
            groups["hanglyph." in name, name in decayed].append(parameter)
        optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "lr": self.glyph_learning_rate if is_glyph else self.args.learning_rate,
                    "weight_decay": self.args.weight_decay if is_decayed else 0.0,
                }
                for (is_glyph, is_decayed), parameters in groups.items()
            ],
            **settings,
        )
        return self.optimizer

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
            now = time.perf_counter()
            measures["tokens_per_second"] = measures.pop("tokens") / (now - self._since)
            self._since = now
            logs.update(measures)
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        control = self.control
        due = control.should_log or control.should_evaluate or control.should_save
        # On a GPU, looking at the loss waits for the device; so only when it is looked at anyway.
        if due or self.args.device.type == "cpu":
            for name, value in (("loss", tr_loss), ("gradient norm", grad_norm)):
                if value is not None:
                    self._check_finite(name, float(value))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the {name} is {value} at step {self.state.global_step}; the last checkpoint stays; "
                "lower --learning-rate or lengthen --warmup-steps, with another --output-dir"
            )

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
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - started  # validation is no training time
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        started = time.perf_counter()
        for name, parameter in model.named_parameters():
            self._check_finite(f"sum of {name}", float(parameter.detach().sum()))
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(checkpoint)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in TORCH_WRITE_FAILURES):
                raise
            if self.args.should_save:
                shutil.rmtree(checkpoint, ignore_errors=True)
            raise UserError(
                f"{checkpoint} could not be written ({error}); the checkpoint before it is kept; "
                "make room, then repeat the command to continue"
            ) from error
        self._since += time.perf_counter() - started
