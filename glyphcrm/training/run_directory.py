"""The directory of a run: whose it is, and which of its checkpoints are whole.

run.json             what decides the run's result; a run with other settings is refused
recipe.yaml          the options that repeat it
data/                vocabulary, atlas and tokenised text
checkpoint-N/        complete.json, written last, lists the files with their sizes and SHA-256
parameters.json      how many the model has, with and without heads
metrics.jsonl        a line for each log and validation
loss.png  model/     at the end: the chart, and the model with its tokenizer
.lock                while a process works here
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glyphcrm.errors import SHOWN_CHARACTERS, UserError, listed, shown
from glyphcrm.files import NO_ROOM, write_atomically
from glyphcrm.training.run_lock import locked

RUN_FILE = "run.json"
RECIPE_FILE = "recipe.yaml"
LOGS_DIRECTORY = "logs"
MODEL_DIRECTORY = "model"
DATA_DIRECTORY = "data"
PARAMETERS_FILE = "parameters.json"
COMPLETE_FILE = "complete.json"
JSON_BYTES = 1 << 26  # of what this program writes nothing comes near
_CHECKPOINT = re.compile(r"checkpoint-\d+")
# What `glyphcrm.files` leaves beside a target when the process is killed.
_LEFT_OVER = re.compile(r"\.(model|checkpoint-\d+)\.[a-z0-9_]{8}|\.[0-9a-f]{16}\.tmp")


def claim(run_dir: Path, identity: dict[str, Any]) -> None:
    """Make `run_dir` the home of the run with this identity, or check that it is.

    A run of which nothing has come gives way: it was stopped before its first step, or could not begin. The text that
    it may have made is checked by itself.

    Raises:
        UserError: it holds a run with other settings or of another version, or files of something else.
    """
    identity = json.loads(json.dumps(identity))
    run_file = run_dir / RUN_FILE
    ours = (RUN_FILE, RECIPE_FILE, DATA_DIRECTORY, LOGS_DIRECTORY) if run_file.exists() else ()
    try:
        others = [p.name for p in run_dir.iterdir() if p.name not in ours and not p.name.startswith(".")]
        if run_file.exists() and others:
            _check_identity(run_dir, identity)
            return
        if others:
            raise UserError(f"{run_dir} is not empty and holds no run; choose another --output-dir")
    except FileNotFoundError:
        run_dir.mkdir(parents=True)
    write_json(run_file, identity)


def _check_identity(run_dir: Path, identity: dict[str, Any]) -> None:
    try:
        found = read_json(run_dir / RUN_FILE)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{run_dir / RUN_FILE}: damaged; delete {run_dir} or choose another --output-dir")
    if unknown := sorted(found.keys() ^ identity.keys()):
        raise UserError(
            f"{run_dir} holds a run of another version of this program (it differs in {listed(unknown)}); "
            "finish it with that version, or choose another --output-dir"
        )
    if differing := [_change(key, found[key], identity[key]) for key in found if found[key] != identity[key]]:
        raise UserError(
            f"{run_dir} holds a run with other settings ({', '.join(differing[:3])}); "
            "repeat its command to continue it, or choose another --output-dir"
        )


def _change(key: str, before: Any, now: Any) -> str:
    """Return how a setting has changed; of files with their digests, which."""
    if isinstance(before, dict) and isinstance(now, dict):
        return f"{key}: {listed(sorted(n for n in {**before, **now} if before.get(n) != now.get(n)))}"
    return f"{key} {_brief(before)} -> {_brief(now)}"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def mark_complete(checkpoint: Path) -> None:
    """Record, as the last act of writing a checkpoint, which files it consists of: their sizes and SHA-256.

    That takes a second a gigabyte, while the files are still in memory.
    """
    record = {}
    for name, path in _files(checkpoint).items():
        with open(path, "rb") as file:
            record[name] = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            os.fsync(file.fileno())
    write_json(checkpoint / COMPLETE_FILE, record)


def check_whole(checkpoint: Path) -> None:
    """Raise `UserError` if a checkpoint has not the bytes that were written; read it before its files are loaded."""
    if (damage := _damage(checkpoint)) is not None:
        raise UserError(f"{checkpoint}: {damage}; put back a copy, or delete {checkpoint.parent} to start again")


def _damage(checkpoint: Path, contents: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, or None; without `contents` only sizes are looked at."""
    files = _files(checkpoint)
    try:
        record = {name: (of["bytes"], of["sha256"]) for name, of in read_json(checkpoint / COMPLETE_FILE).items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        record = {}
    if not record:
        return f"{COMPLETE_FILE} is damaged, or of another version of this program"
    for name, (size, _) in record.items():
        if name not in files:
            return f"{shown(name)} is missing"
        if files[name].stat().st_size != size:
            return f"{name} is damaged (it has not its {size} bytes)"
    for name, (_, digest) in record.items() if contents else ():
        with open(files[name], "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} is damaged (its SHA-256 is not the one in {COMPLETE_FILE})"
    return None


def _files(checkpoint: Path) -> dict[str, Path]:
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {str(path.relative_to(checkpoint)): path for path in paths if path != checkpoint / COMPLETE_FILE}


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, whole or not, oldest first."""
    return sorted((path for path in run_dir.iterdir() if _CHECKPOINT.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint, every byte of it checked, or None if none was ever written to its end.

    Checkpoints that an interruption left half-written are removed, and damaged ones if there is a whole one to
    continue from: the steps between are trained again.

    Raises:
        UserError: all that were written to their end are damaged.
    """
    whole, damaged = None, {}
    for path in reversed(checkpoints(run_dir)):
        if not (path / COMPLETE_FILE).exists():
            print(f"removing {path}: it was not written to its end", file=sys.stderr)
            shutil.rmtree(path)
        elif (damage := _damage(path, contents=whole is None)) is not None:
            damaged[path] = damage
        else:
            whole = whole or path
    if whole is None:
        for path in damaged:
            check_whole(path)
    for path, damage in damaged.items():
        print(f"removing {path}: {damage}; {whole} is whole", file=sys.stderr)
        shutil.rmtree(path)
    return whole


def forget(run_dir: Path) -> None:
    """Undo `claim`, after a start that failed: remove what this program wrote, and the directory if that was all."""
    if not (run_dir / RUN_FILE).exists():
        return  # it was refused, and holds what is not ours
    (run_dir / RUN_FILE).unlink()
    (run_dir / RECIPE_FILE).unlink(missing_ok=True)
    shutil.rmtree(run_dir / DATA_DIRECTORY, ignore_errors=True)
    with contextlib.suppress(OSError):
        run_dir.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people, whole or not at all."""
    write_atomically(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the content of a JSON file that this program wrote; raise `ValueError` if it cannot have done so."""
    with open(path, "rb") as file:
        content = file.read(JSON_BYTES + 1)
    if len(content) > JSON_BYTES:
        raise ValueError(f"{path}: larger than {JSON_BYTES} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{path}: nested too deep") from None


@contextlib.contextmanager
def resumable(run_dir: Path) -> Iterator[None]:
    """Have `run_dir` alone, without what a killed process left behind, and say of any end before the end what to do.

    Of several processes of one run the first has it for all. An interruption tells that the run can go on. What the
    machine refuses (a full disk, a read-only place, memory for a data loading process) becomes a `UserError`.
    """
    try:
        with contextlib.ExitStack() as stack:
            if int(os.environ.get("RANK", "0")) == 0:
                stack.enter_context(locked(run_dir))
                _sweep(run_dir)
            yield
    except KeyboardInterrupt as stop:
        told = str(stop) or "interrupted; the same command continues from what has been saved"
        raise KeyboardInterrupt(told) from None
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(f"{run_dir}: {error.strerror}; make room, then repeat the command") from error
        if error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; mend that, then repeat the command") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a data loading process was killed, perhaps for its memory; "
            "the same command continues, with --workers 0 without such processes"
        ) from error


def _sweep(run_dir: Path) -> None:
    """Remove what processes that were killed while writing have left; the caller has the directory alone."""
    for place in (run_dir, run_dir / DATA_DIRECTORY, *run_dir.glob("seed-*")):
        for path in place.iterdir() if place.is_dir() else ():
            if _LEFT_OVER.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
