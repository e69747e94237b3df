"""Work side by side: what fails, what is killed, what is told to stop, and what this leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from glyphcrm.errors import UserError
from glyphcrm.reproduce.side_by_side import PRELOADED, Job, Workers
from glyphcrm.training.loop import TrainingDiverged
from tests.robustness.processes import warm_up


def write(path: Path) -> None:
    path.write_text("")


def refuse(path: Path) -> None:
    raise UserError(f"{path.name} is refused")


def diverge(path: Path) -> None:
    raise TrainingDiverged("the loss is nan")


def be_killed(path: Path) -> None:
    print("about to end", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def work_for_long(path: Path) -> None:
    """Begin, have a child, and save when told to stop."""

    def save(number: int, frame: FrameType | None) -> None:
        path.with_suffix(".saved").write_text("")
        raise KeyboardInterrupt("stopped")

    signal.signal(signal.SIGTERM, save)
    child = subprocess.Popen(["sleep", "600"])
    path.with_suffix(".pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


def job(directory: Path, name: str, work: Callable[[Path], None], seconds: float = 0.0) -> Job:
    return Job(name, directory / name, work, (directory / name,), seconds)


def end_of(pid: int) -> bool:
    """Wait until a process is gone, or only waits to be reaped."""
    for _ in range(1000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_failure_ends_nothing_else_and_names_its_log(tmp_path: Path) -> None:
    warm_up()
    workers = Workers(tmp_path, 2)
    (tmp_path / "made").write_text("before")
    jobs = [job(tmp_path, name, work) for name, work in (("one", write), ("two", write), ("made", refuse))]
    jobs += [job(tmp_path, "refused", refuse, 9.0), job(tmp_path, "killed", be_killed, 8.0)]
    jobs.append(job(tmp_path, "diverged", diverge))
    assert not workers.run(jobs)
    assert all((tmp_path / name).exists() for name in ("one", "two")) and (tmp_path / "made").read_text() == "before"
    said = {failure.split(":")[0]: failure for failure in workers.failures}
    assert set(said) == {"refused", "killed", "diverged"} and workers.diverged == [said["diverged"]]
    assert "exit code 2: error: refused is refused" in said["refused"]
    assert "killed by SIGKILL: about to end" in said["killed"]
    for name, line in said.items():
        assert line.endswith(f"less {tmp_path}/logs/{name}.log")
    assert workers.run(jobs[:3]) and len(workers.failures) == 3


def test_an_interruption_lets_all_save_and_leaves_nobody(tmp_path: Path) -> None:
    warm_up()
    names = ("one", "two")

    def interrupt(number: int, frame: FrameType | None) -> None:
        if all((tmp_path / f"{name}.pids").exists() for name in names):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt("stopped")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            Workers(tmp_path, 2).run([job(tmp_path, name, work_for_long) for name in names])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for name in names:
        assert (tmp_path / f"{name}.saved").exists()
        assert all(end_of(int(pid)) for pid in (tmp_path / f"{name}.pids").read_text().split())


def test_what_is_imported_before_the_fork_looks_for_no_gpu() -> None:
    program = f"""
import importlib, torch
def refuse(*_): raise SystemExit("a GPU is looked for")
for module, names in {{torch.cuda: ("is_available", "device_count", "_lazy_init", "get_device_properties"),
                      torch.accelerator: ("is_available", "device_count")}}.items():
    for name in names:
        setattr(module, name, refuse)
# transformers asks what PyTorch was built for, which looks at nothing.
torch.accelerator.current_accelerator = lambda check_available=False: refuse() if check_available else None
for name in {PRELOADED}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
