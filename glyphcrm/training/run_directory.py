"""The directory of a run: whose it is, and which of its checkpoints are whole.

run.json             what decides the run's result; a run with other settings is refused
data/                vocabulary, atlas and tokenised text
checkpoint-N/        Trainer checkpoints; complete.json, written last, lists the files and their sizes
parameters.json      how many the model has, with and without heads
metrics.jsonl        a line for each log and validation
loss.png  model/     at the end: the chart, and the model with its tokenizer
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically

RUN_FILE = "run.json"
MODEL_DIRECTORY = "model"
DATA_DIRECTORY = "data"
PARAMETERS_FILE = "parameters.json"
COMPLETE_FILE = "complete.json"
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def claim(run_dir: Path, identity: dict[str, Any]) -> None:
    """Make `run_dir` the home of the run with this identity, or check that it is.

    Raises:
        UserError: it holds a run with other settings, or files of something else.
    """
    identity = json.loads(json.dumps(identity))
    run_file = run_dir / RUN_FILE
    if run_file.exists():
        try:
            found = read_json(run_file)
        except ValueError:
            raise UserError(f"{run_file}: not JSON; delete {run_dir} or choose another --output-dir") from None
        differing = [key for key in {**found, **identity} if found.get(key) != identity.get(key)]
        if differing:
            changes = ", ".join(f"{key} {found.get(key)!r} -> {identity.get(key)!r}" for key in differing[:3])
            raise UserError(
                f"{run_dir} holds a run with other settings ({changes}); "
                "repeat its command to continue it, or choose another --output-dir"
            )
        return
    try:
        if run_dir.exists() and any(not path.name.startswith(".") for path in run_dir.iterdir()):
            raise UserError(f"{run_dir} is not empty and holds no run; choose another --output-dir")
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run_dir}: {error.strerror}; choose another --output-dir") from None
    write_json(run_file, identity)


def mark_complete(checkpoint: Path) -> None:
    """Record, as the last act of writing a checkpoint, which files it consists of."""
    sizes = {str(f.relative_to(checkpoint)): f.stat().st_size for f in sorted(checkpoint.rglob("*")) if f.is_file()}
    sizes.pop(COMPLETE_FILE, None)
    for name in sizes:
        with open(checkpoint / name, "rb") as file:
            os.fsync(file.fileno())
    write_json(checkpoint / COMPLETE_FILE, sizes)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end and still has all its bytes."""
    try:
        sizes = read_json(checkpoint / COMPLETE_FILE)
        return bool(sizes) and all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, whole or not, oldest first."""
    return sorted((path for path in run_dir.iterdir() if _CHECKPOINT.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint, and remove those that an interruption left half-written."""
    whole = None
    for path in checkpoints(run_dir):
        if is_complete(path):
            whole = path
        else:
            print(f"removing {path}: it was not written to its end", file=sys.stderr)
            shutil.rmtree(path)
    return whole


def forget(run_dir: Path) -> None:
    """Undo `claim`, after a start that failed: remove what this program wrote, and the directory if that was all."""
    if not (run_dir / RUN_FILE).exists():
        return  # it was refused, and holds what is not ours
    (run_dir / RUN_FILE).unlink()
    shutil.rmtree(run_dir / DATA_DIRECTORY, ignore_errors=True)
    with contextlib.suppress(OSError):
        run_dir.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people, whole or not at all."""
    write_atomically(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def resumable(run_dir: Path) -> Iterator[None]:
    """Say of an interruption that the run can go on, and turn the `OSError` of a full disk into a `UserError`."""
    try:
        yield
    except KeyboardInterrupt as stop:
        told = str(stop) or "interrupted; the same command continues from the last checkpoint"
        raise KeyboardInterrupt(told) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"{run_dir}: {error.strerror}; make room, then repeat the command") from error
