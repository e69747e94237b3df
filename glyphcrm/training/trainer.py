"""transformers' `Trainer`, with GlyphCRM's loss over accumulated batches and whole checkpoints."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.training.measures import Measures
from glyphcrm.training.resumable_trainer import ResumableTrainer, hanglyph_parameters
from glyphcrm.training.whitened_projections import WhitenedProjections


class PretrainingTrainer(ResumableTrainer):
    """Trains a `GlyphCRMForPreTraining` or a `BertBaseline` on batches of `PretrainingCollator`.

    * The MLM loss is the mean over all labels of an optimiser step, over all its micro-batches and
      processes; the NSP loss likewise over its pairs. How a step is cut up does not change it.
    * HanGlyph has a learning rate of its own, and so have its projections, for steps in whitened coordinates
      (`WhitenedProjections`); without the latter they are trained as the rest of HanGlyph is.
    * Logs carry MLM and NSP loss and accuracy, real tokens per second, and distinct characters per batch.
    """

    def __init__(
        self, *args: Any, glyph_learning_rate: float, projection_learning_rate: float | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.glyph_learning_rate = glyph_learning_rate
        self.projection_learning_rate = projection_learning_rate
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the labels of a whole step
        self.loss_is_scaled_for_ga = True
        self._measures = Measures(self.args.device)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser: each part's learning rate, no weight decay on biases and norms."""
        trained = model or self.model
        assert trained is not None
        of_hanglyph = set(hanglyph_parameters(trained))
        whitened = None
        if of_hanglyph and self.projection_learning_rate is not None:
            base = trained.base_model
            assert isinstance(base, GlyphCRMModel)
            whitened = WhitenedProjections(base.hanglyph, base.frequent_rows(), base.glyph_table.bitmaps)
        decayed = set(self.get_decay_parameter_names(trained))
        # The encoder's groups come first: it is their learning rate that the logs show.
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {
            (is_glyph, is_decayed): [] for is_glyph in (False, True) for is_decayed in (True, False)
        }
        for name, parameter in trained.named_parameters():
            if whitened is None or parameter not in whitened.weights:
                groups[parameter in of_hanglyph, name in decayed].append(parameter)
        optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "lr": self.glyph_learning_rate if is_glyph else self.args.learning_rate,
                    "weight_decay": self.args.weight_decay if is_decayed else 0.0,
                }
                for (is_glyph, is_decayed), parameters in groups.items()
                if parameters
            ]
            + (whitened.groups(lr=self.projection_learning_rate) if whitened else []),
            **settings,
        )
        if whitened:
            whitened.attach(self.optimizer)
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
