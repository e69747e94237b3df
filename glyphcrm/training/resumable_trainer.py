"""transformers' `Trainer`, as far as an interruption, a full disk or a diverging loss may concern it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from glyphcrm.errors import UserError
from glyphcrm.training.callbacks import ProgressBar, StopOnSignal
from glyphcrm.training.partwise_trainer import PartwiseTrainer
from glyphcrm.training.run_directory import mark_complete

# How torch.save says that a file could not be written.
TORCH_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "iostream error")


class TrainingDiverged(UserError):
    """The loss or a gradient is no longer a finite number."""


class ResumableTrainer(PartwiseTrainer):
    """A trainer that can be interrupted at any moment and continued.

    * A checkpoint counts once it is whole.
    * A loss that is not finite stops the run before it is saved.
    * Training logs carry the seconds of training so far, without validations and checkpoints, over all
      continuations.
    """

    def __init__(self, *args: Any, bar: ProgressBar, callbacks: Sequence[TrainerCallback], **kwargs: Any) -> None:
        self._bar, self._stop = bar, StopOnSignal()
        # The stop comes first: once another has shown or written anything, a signal is heard.
        super().__init__(*args, callbacks=[self._stop, bar, *callbacks], **kwargs)
        self.remove_callback(PrinterCallback)
        self._since = time.perf_counter()

    def train_from(self, checkpoint: Path | None) -> bool:
        """Train to the end, from a checkpoint if there is one; the clock of the logs starts here.

        Return whether Ctrl-C or SIGTERM stopped it before; a checkpoint is saved then.

        Raises:
            UserError: the loss diverged, or a checkpoint could not be written.
        """
        self._since = time.perf_counter()
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except RuntimeError as error:
            # The signal that stops this process may reach its data loading process first.
            if not (self._stop.stopped and "DataLoader worker" in str(error)):
                raise
        finally:
            self._bar.close()
        return self._stop.stopped

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the seconds of training to a training log."""
        if "loss" in logs:
            now = time.perf_counter()
            logs["seconds"] = self._seconds_until(now)
            self._since = now
        super().log(logs, start_time)

    def _seconds_until(self, now: float) -> float:
        """Return the seconds of training until `now`, as `time.perf_counter` counts."""
        logged = (entry["seconds"] for entry in reversed(self.state.log_history) if "loss" in entry)
        return next(logged, 0.0) + now - self._since

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
                "lower --learning-rate or warm up for longer, with another --output-dir"
            )

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
