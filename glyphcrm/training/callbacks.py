"""What a run shows and writes while it goes on: progress bar, metrics.jsonl, an orderly stop."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from glyphcrm.files import write_atomically

METRICS_FILE = "metrics.jsonl"
SAME_PRESS_SECONDS = 1.0


class ProgressBar(TrainerCallback):
    """One line: step, time left, and what a subclass shows of the logs in `on_log`."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_local_process_zero:
            self._bar = tqdm(
                desc=self._description,
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
            )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def close(self) -> None:
        """End the line, so that what is printed next has one of its own."""
        if self._bar is not None:
            self._bar.close()


class MetricsFile(TrainerCallback):
    """Keeps metrics.jsonl, a line for each log and validation, equal to what the run has been through.

    A run that continues from a checkpoint first drops the lines of the steps that were lost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            history = "".join(_line(entry) for entry in state.log_history)
            write_atomically(self.path, history.encode())

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. Ctrl-C once more stops at once.

    Only for a single process: several would have to agree on the step, and lose at most the
    steps since the last checkpoint instead.
    """

    def __init__(self) -> None:
        self.stopped_at: float | None = None
        self._before: dict[int, Any] = {}

    @property
    def stopped(self) -> bool:
        """Whether a signal has come."""
        return self.stopped_at is not None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size == 1:
            self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.stopped:  # a signal that came may arrive a second time
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.stopped_at is None:
            self.stopped_at = now
        # torchrun passes the terminal's Ctrl-C on, so that one press arrives twice.
        elif number == signal.SIGINT and now - self.stopped_at > SAME_PRESS_SECONDS:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stopped:
            control.should_save = control.should_training_stop = True


class StopAfter(TrainerCallback):
    """Saves and stops after a number of steps, of a schedule that may be longer."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= self.steps:
            control.should_save = control.should_training_stop = True


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the entries of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
