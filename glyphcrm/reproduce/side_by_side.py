"""Work of a reproduction side by side, each piece in a process of its own that ends when this one does."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from glyphcrm.errors import INTERRUPTED_EXIT_CODE, USER_ERROR_EXIT_CODE, UserError, one_line
from glyphcrm.training.loop import TrainingDiverged
from glyphcrm.training.run_directory import LOGS_DIRECTORY

# Seven runs on one H200 had 45 % of their single speed each; more were not tried.
MOST = 7
GIGABYTES = {"base": 20, "small": 9, "tiny": 6, "nano": 4}  # of a GPU, for a run
DIVERGED_EXIT_CODE = 3
STOP_SECONDS = 60.0  # for the step that is being computed, and a checkpoint
TAIL_BYTES = 4000
# Imported once, in a process that is forked for each piece of work. None of these looks for a GPU on import: a process
# that has one cannot be forked.
PRELOADED = [
    *("glyphcrm.pretraining.run", "glyphcrm.finetuning.run", "glyphcrm.reproduce.robustness", "sklearn.metrics"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("tensorboard.summary.writer.record_writer", "tensorboard.compat.proto.event_pb2"),
]
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        name: for the user, and of its log.
        made: the file or directory that it leaves at its end; with that there, it is not done again.
        work, arguments: a function of some module, and what it is called with.
        seconds: how long it may take, as far as is known; the longest begin first.
    """

    name: str
    made: Path
    work: Callable[..., object]
    arguments: tuple[Any, ...]
    seconds: float = 0.0


class Workers:
    """Does pieces of work, `at_once` of them side by side, with logs in ``logs/`` of `output_dir`.

    Attributes:
        failures: of each that did not come to its end its name, how it ended, its log.
        diverged: those of them that would end so again, as the training diverged.
        seconds: how long each has taken.
    """

    def __init__(self, output_dir: Path, at_once: int) -> None:
        self.output_dir, self.at_once = output_dir, at_once
        self.failures: list[str] = []
        self.diverged: list[str] = []
        self.seconds: dict[str, float] = {}

    def run(self, jobs: Sequence[Job]) -> bool:
        """Do what is not done yet, the longest first; return whether all of it is done.

        What fails is kept in `failures`, and ends nothing else. An interruption tells all processes to stop, and waits
        until they have saved; another one does not wait.
        """
        waiting = sorted((job for job in jobs if not job.made.exists()), key=lambda job: -job.seconds)
        total, failed, running = len(waiting), len(self.failures), dict[ForkServerProcess, tuple[Job, float]]()
        try:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    job = waiting.pop(0)
                    print(f"{job.name} begins; {show(self.output_dir, job.name)}", flush=True)
                    process = self._process(job)
                    running[process] = job, time.monotonic()  # before it begins, so that no interruption loses it
                    process.start()
                multiprocessing.connection.wait([process.sentinel for process in running])
                for process in [process for process in running if process.exitcode is not None]:
                    job, since = running.pop(process)
                    _kill(process)  # what it may have left of its group
                    self._ended(job, process.exitcode or 0, time.monotonic() - since)
                    print(f"{total - len(waiting) - len(running)} of {total} have ended", flush=True)
        finally:
            _stop([process for process in running if process.pid is not None])
        return len(self.failures) == failed

    def _process(self, job: Job) -> ForkServerProcess:
        log = _log(self.output_dir, job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = max(1, torch.get_num_threads() // self.at_once)
        _CONTEXT.set_forkserver_preload(PRELOADED)
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # looking for a GPU then takes none
        return _CONTEXT.Process(target=_work, args=(log, threads, job.work, job.arguments))

    def _ended(self, job: Job, code: int, seconds: float) -> None:
        self.seconds[job.name] = seconds
        if code == 0 and job.made.exists():
            print(f"{job.name} is done, in {seconds:.0f} s", flush=True)
            return
        end = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        said = _last_line(_log(self.output_dir, job.name))
        self.failures.append(f"{job.name}: {end}: {said}; all of it: {show(self.output_dir, job.name)}")
        print(self.failures[-1], flush=True)
        if code == DIVERGED_EXIT_CODE:
            self.diverged.append(self.failures[-1])


def show(output_dir: Path, name: str) -> str:
    """Return the line that shows the log of a job of that name."""
    return f"less {shlex.quote(str(_log(output_dir, name)))}"


def _log(output_dir: Path, name: str) -> Path:
    return output_dir / LOGS_DIRECTORY / f"{name.replace('/', '.')}.log"


def fitting(preset: str) -> int:
    """Return how many runs of a preset go side by side here: one on a CPU; on a GPU by its memory and by the cores."""
    if not torch.cuda.is_available():
        return 1
    free = torch.cuda.mem_get_info()[0] / 1e9
    return max(1, min(MOST, int(free / GIGABYTES[preset]), (os.cpu_count() or 2) // 2))


def _stop(running: Sequence[ForkServerProcess]) -> None:
    """Have processes save and end; after a minute, or an interruption, end them."""
    deadline = time.monotonic() + STOP_SECONDS
    try:
        for process in running:
            process.terminate()
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in running:
            _kill(process)


def _kill(process: ForkServerProcess) -> None:
    """End a process that was started, and its group, which it may not have yet."""
    assert process.pid is not None
    process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _work(log: Path, threads: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Do a piece of work in this process, a group of its own with those that it starts."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(threads)
    try:
        work(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(DIVERGED_EXIT_CODE if isinstance(error, TrainingDiverged) else USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'interrupted'}", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT_CODE)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # it need not be the one that forked this
    os.killpg(0, signal.SIGKILL)


def _last_line(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    except OSError:
        lines = []
    return one_line(next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said"))
