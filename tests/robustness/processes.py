"""Training commands as processes that start at once, so that many can be killed in little time.

Importing what a command needs takes seconds. One process has done it, and each run is a fork of that one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from glyphcrm.cli.entry import run_command
from glyphcrm.reproduce.side_by_side import PRELOADED

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([*PRELOADED, "pyarrow", __name__])


class Run:
    """`glyphcrm pretrain` or `glyphcrm finetune`, as one process or as the several that torchrun would start."""

    def __init__(self, command: Sequence[str], log: Path, ranks: int = 1) -> None:
        warm_up()
        port = _free_port()
        self.log = log
        self._said_before = log.stat().st_size if log.exists() else 0
        arguments = [(list(command), log, rank, ranks, port) for rank in range(ranks)]
        self._processes = [_CONTEXT.Process(target=_work, args=of_rank) for of_rank in arguments]
        for process in self._processes:
            process.start()

    @property
    def pid(self) -> int:
        """Of the first process."""
        pid = self._processes[0].pid
        assert pid is not None
        return pid

    @property
    def exit_codes(self) -> list[int | None]:
        """Return a code for each process, None while it works."""
        return [process.exitcode for process in self._processes]

    @property
    def ended(self) -> bool:
        """Whether all processes have ended."""
        return None not in self.exit_codes

    def said(self) -> str:
        """Return what this run has written to the log."""
        return self.log.read_bytes()[self._said_before :].decode().replace("\r", "\n")

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = 240) -> bool:
        """Wait until it has ended or `until` is true, not longer than `seconds`; return whether either came."""
        deadline = time.monotonic() + seconds
        while not self.ended and not until():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def kill(self) -> None:
        """End all its processes, those for loading data too, with SIGKILL."""
        self.signal(signal.SIGKILL)
        for process in self._processes:
            process.join()

    def signal(self, number: int) -> None:
        """Send all its processes a signal."""
        for process in self._processes:
            assert process.pid is not None
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:  # it has not got its group yet, or is gone
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)


@cache
def warm_up() -> None:
    """Have everything imported; the first run would wait for it otherwise."""
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}):
        forkserver.ensure_running()
    process = _CONTEXT.Process(target=_nothing)
    process.start()
    process.join()


def run_ranks(work: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Call ``work(rank, *arguments)`` in so many processes, and wait; an exception of one is raised here."""
    warm_up()
    torch.multiprocessing.start_processes(work, arguments, nprocs=ranks, start_method="forkserver")


def _nothing() -> None:
    pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _work(command: list[str], log: Path, rank: int, ranks: int, port: int) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if ranks > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {name: str(value) for name, value in {**places, "MASTER_PORT": port}.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    sys.exit(run_command(command[0], command[1:]))
