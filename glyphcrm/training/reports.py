"""Where a run is reported: TensorBoard, and what transformers' `Trainer` knows (wandb, mlflow, trackio, ...)."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from glyphcrm.errors import UserError, one_line
from glyphcrm.training.progress import Entry, Record, TensorBoardFile, check_tensorboard
from glyphcrm.training.run_directory import read_json, write_json

TENSORBOARD, NONE = "tensorboard", "none"
TENSORBOARD_DIRECTORY = "tensorboard"
TRACKERS_FILE = "trackers.json"  # name -> id of this run there, to continue it
PROJECT = "glyphcrm"


def check_reports(names: Sequence[str]) -> None:
    """Raise `UserError` for a name that is unknown, or whose library is not installed, before a run has begun."""
    if NONE in names and len(names) > 1:
        raise UserError(f"--report-to {' '.join(names)}: with {NONE} there is no other")
    for name in names:
        if name == TENSORBOARD:
            check_tensorboard()
        elif name != NONE:
            _callback(name)


@contextmanager
def reported(
    names: Sequence[str], title: str, settings: Mapping[str, object], model: PreTrainedModel, run_dir: Path, first: bool
) -> Iterator[list[Record]]:
    """Give the block what reports the run in `run_dir` to each of `names`; end the reports with it.

    Args:
        names: as of `check_reports`.
        title: what the run is called there.
        settings: of the run, and the same whenever it continues; shown with it.
        model: the one that is trained; its configuration is shown, too.
        run_dir: where the run lives.
        first: whether this process is the first; others report nothing.
    """
    records: list[Record] = []
    trackers: list[_Tracker] = []
    for name in names if first else ():
        if name == TENSORBOARD:
            records.append(TensorBoardFile(run_dir / TENSORBOARD_DIRECTORY))
        elif name != NONE:
            trackers.append(_Tracker(name, title, settings, model, run_dir))
    try:
        yield [*records, *trackers]
    finally:
        for tracker in trackers:
            tracker.end()


class _Arguments(TrainingArguments):
    """What the callbacks read of a `Trainer`'s, with this run's settings in place of a `Trainer`'s."""

    project, trackio_space_id = PROJECT, None

    def __init__(self, run_name: str, output_dir: str, settings: Mapping[str, object]) -> None:
        self.run_name, self.output_dir, self._settings = run_name, output_dir, settings

    def to_dict(self) -> dict[str, Any]:
        return dict(self._settings)

    to_sanitized_dict = to_dict


class _Tracker:
    """A reporting callback of transformers, called as its `Trainer` does; of each run, one."""

    def __init__(
        self, name: str, title: str, settings: Mapping[str, object], model: PreTrainedModel, run_dir: Path
    ) -> None:
        self._name, self._model, self._ids_file = name, model, run_dir / TRACKERS_FILE
        self._arguments = _Arguments(title, str(run_dir), settings)
        self._state, self._control = TrainerState(), TrainerControl()
        self._callback: Any = None  # until it has begun, and from when it has failed
        self._finish: Callable[[], object] = int

    def begin(self, history: Sequence[Entry]) -> None:
        """Continue the run where it is known; else begin one, with what it has been through.

        Raises:
            UserError: the tracker, or what is known of the run, does not let it.
        """
        name = self._name
        try:
            ids = dict(read_json(self._ids_file)) if self._ids_file.exists() else {}
            known = ids.get(name)
            callback = _callback(name)
            if name in _STARTS:
                ids[name], self._finish = _STARTS[name](known, str(self._arguments.run_name))
                self._arguments.run_name = ids[name]  # what trackio continues a run by; others have begun
            for event in ("on_init_end", "on_train_begin"):
                getattr(callback, event)(self._arguments, self._state, self._control, model=self._model)
        except Exception as error:  # of any library
            raise UserError(
                f"--report-to {name}: {error}; mend that, or leave it out (delete {self._ids_file} for a new run there)"
            ) from error
        self._callback = callback
        if known is None:
            for entry in history:
                self.write(entry)
        if name in _STARTS and known is None:
            write_json(self._ids_file, ids)

    def write(self, entry: Entry) -> None:
        """Report an entry. A tracker that fails is told of, once, and ends no run."""
        self._state.global_step = int(entry["step"])
        logs = {name: value for name, value in entry.items() if name != "step"}
        self._tell("on_log", logs=logs)

    def end(self) -> None:
        """End the report."""
        self._tell("on_train_end")

    def _tell(self, event: str, **more: Any) -> None:
        if self._callback is None:
            return
        try:
            getattr(self._callback, event)(self._arguments, self._state, self._control, model=self._model, **more)
            if event == "on_train_end":
                self._finish()
        except Exception as error:
            print("\n" + one_line(f"{self._name}: {error}; nothing more is reported there"), file=sys.stderr)
            self._callback = None


def _callback(name: str) -> Any:
    try:
        (callback,) = get_reporting_integration_callbacks([name])
        return callback()
    except ValueError as error:
        raise UserError(f"--report-to {error}".rstrip(".") + f"; {NONE} reports nothing") from None
    except (ImportError, RuntimeError) as error:
        raise UserError(f"--report-to {name}: {error}") from None


def _start_wandb(known: str | None, title: str) -> tuple[str, Callable[[], object]]:
    import wandb  # type: ignore[import-not-found]

    run = wandb.init(project=os.getenv("WANDB_PROJECT", PROJECT), name=title, id=known, resume="allow")
    return run.id, wandb.finish


def _start_mlflow(known: str | None, title: str) -> tuple[str, Callable[[], object]]:
    import mlflow  # type: ignore[import-not-found]

    return mlflow.start_run(run_id=known, run_name=title).info.run_id, mlflow.end_run


def _start_trackio(known: str | None, title: str) -> tuple[str, Callable[[], object]]:
    return known or f"{title}-{secrets.token_hex(3)}", int  # the callback starts it, and ends it


# Those whose callback would begin another run whenever this one continues: (id, title) -> id, and what ends it.
_STARTS = {"wandb": _start_wandb, "mlflow": _start_mlflow, "trackio": _start_trackio}
