"""What a run shows and writes while it goes on: progress bar, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically

METRICS_FILE = "metrics.jsonl"
Entry = dict[str, float]  # a line of metrics.jsonl: names and values, "step" among them


class Record(Protocol):
    """What a run's entries are written to."""

    def begin(self, history: Sequence[Entry]) -> None:
        """Start with what a run that continues has been through."""
        ...

    def write(self, entry: Entry) -> None:
        """Append an entry."""
        ...


class Display:
    """One line on the terminal: step, time left, and what the run says of itself. A process that is not the first
    has none (`shown` false)."""

    def __init__(self, description: str, shown: bool) -> None:
        self._description, self._shown = description, shown
        self._bar: tqdm | None = None

    def open(self, step: int, steps: int) -> None:
        """Show that `step` of `steps` are done."""
        if self._shown:
            self._bar = tqdm(desc=self._description, total=steps, initial=step, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """Show that one more step is done."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, status: str, remark: str | None) -> None:
        """Show `status` behind the bar, and a remark in a line of its own above it."""
        if self._bar is not None:
            self._bar.set_postfix_str(status)
            if remark is not None:
                self._bar.write(remark)

    def close(self) -> None:
        """End the line, so that what is printed next has one of its own."""
        if self._bar is not None:
            self._bar.close()


class MetricsFile:
    """metrics.jsonl, a line for each log and validation, equal to what the run has been through."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, history: Sequence[Entry]) -> None:
        """Start with what a run that continues has been through: the lines of steps that were lost go."""
        write_atomically(self.path, "".join(map(_line, history)).encode())

    def write(self, entry: Entry) -> None:
        """Append a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(entry))


class TensorBoardFile:
    """The same for TensorBoard.

    Each entry is on the disk when `write` returns: TensorBoard's own writer has a thread, which a full disk ends with a
    traceback.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"

    def begin(self, history: Sequence[Entry]) -> None:
        """Start a file; TensorBoard forgets what earlier ones have after the last step of `history`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._append(file_version="brain.Event:2")
        from tensorboard.compat.proto.event_pb2 import SessionLog

        begun = int(history[-1]["step"]) + 1 if history else 0
        self._append(step=begun, session_log=SessionLog(status=SessionLog.START))

    def write(self, entry: Entry) -> None:
        """Append an entry; names of validations begin with ``eval/``, others with ``train/``."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=_tag(name), simple_value=value) for name, value in entry.items() if name != "step"]
        self._append(step=int(entry["step"]), summary=Summary(value=values))

    def _append(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with open(self.path, "ab") as file:
            RecordWriter(file).write(Event(wall_time=time.time(), **fields).SerializeToString())


def check_tensorboard() -> None:
    """Raise `UserError` if TensorBoard is not installed, before a run has begun."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError:
        raise UserError("tensorboard: not installed; pip install tensorboard") from None


def read_metrics(path: Path) -> list[Entry]:
    """Return the entries of a metrics.jsonl; raise `UserError` if one is none that a run has written."""
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not all(isinstance(value, int | float) for value in entry.values()):
                raise ValueError("no names with numbers")
            if "step" not in entry:
                raise ValueError("no step")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: damaged ({error}); put back a copy of it") from None
        entries.append(entry)
    return entries


def _tag(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
