"""The directory of a run: whose it is, who works in it, which checkpoints are whole, what a user is told."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glyphcrm.errors import UserError
from glyphcrm.training.run_directory import (
    RUN_FILE,
    check_whole,
    claim,
    forget,
    last_checkpoint,
    locked,
    mark_complete,
    resumable,
)

REPOSITORY = Path(__file__).parents[2]
IDENTITY = {"seed": 0, "model_files": {"config.json": "a", "pytorch_model.bin": "b"}}


def process(body: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs `body` and prints "ready" when it has come as far as a test waits for."""
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom glyphcrm.errors import UserError\n"
        f"from glyphcrm.files import whole_directory\nfrom glyphcrm.training.run_directory import *\n{body}"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


HOLD = "with resumable(Path(sys.argv[1])):\n    print('ready', flush=True)\n    time.sleep(60)"


def checkpoint(run: Path, step: int) -> Path:
    directory = run / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * step)
    (directory / "optimizer.pt").write_bytes(os.urandom(1000))
    mark_complete(directory)
    return directory


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("raised", "told"),
    [("", "interrupted; the same command continues from what has been saved"), ("stopped, saved", "stopped, saved")],
)
def test_an_interruption_names_what_continues(raised: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, resumable(tmp_path / "run"):
        raise KeyboardInterrupt(raised)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(errno.ENOSPC, "full"), r"run: full; make room, then repeat the command"),
        (OSError(errno.EDQUOT, "full"), r"run: full; make room"),
        (OSError(errno.EFBIG, "full"), r"run: full; make room"),
        (PermissionError(errno.EACCES, "forbidden", "/a/b"), r"/a/b: forbidden; mend that, then repeat the command"),
        (OSError(errno.EROFS, "read-only", "/a/b"), r"/a/b: read-only; mend that"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. "), r"data loading process was killed"),
    ],
)
def test_what_the_machine_refuses_is_the_users_to_mend(raised: Exception, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told), resumable(tmp_path / "run"):
        raise raised
    assert not (tmp_path / "run").exists()


def test_other_errors_stay_themselves(tmp_path: Path) -> None:
    for error in (RuntimeError("a fault"), BrokenPipeError(errno.EPIPE, "closed"), ZeroDivisionError()):
        with pytest.raises(type(error)), resumable(tmp_path / "run"):
            raise error


def test_a_second_process_is_refused_and_a_killed_one_leaves_the_place_free(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    first = process(HOLD, run)
    told = rf"{run} is in use by process {first.pid} on '.*' since '20"
    with pytest.raises(UserError, match=told), resumable(run):
        pytest.fail("both work")
    assert run.exists()
    first.kill()
    first.wait()
    with resumable(run), pytest.raises(UserError, match="in use"), locked(run):
        pytest.fail("both work")
    with locked(run):  # it was given back
        pass
    assert not list(run.iterdir())


def test_a_forked_process_that_lives_on_does_not_hold_the_lock(tmp_path: Path) -> None:
    """As data loading processes do for some seconds when the training process is killed."""
    # The child says that it lives: only then has it done what it does after a fork.
    forked = "    if os.fork():\n        time.sleep(60)\n    print(f'ready\\n{os.getpid()}', flush=True)\n"
    first = process(HOLD.replace("    print('ready', flush=True)\n", forked), tmp_path / "run")
    assert first.stdout is not None
    child = int(first.stdout.readline())
    first.kill()
    first.wait()
    try:
        with locked(tmp_path / "run"):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_one_that_waits_goes_on_when_the_other_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The directory of the first, which takes its time to remove it, is never that of the second."""
    first = process(
        "from glyphcrm.training import run_lock\nremove = run_lock._remove_empty\n"
        "run_lock._remove_empty = lambda directory: (time.sleep(0.5), remove(directory))\n"
        "with locked(Path(sys.argv[1])):\n    print('ready', flush=True)\n    time.sleep(1)",
        tmp_path / "d",
    )
    began = time.monotonic()
    with locked(tmp_path / "d", wait=True):
        assert first.wait(timeout=10) == 0
    assert time.monotonic() - began < 9
    assert f"waiting for process {first.pid}" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_places_that_cannot_be_written_are_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "link", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="name another directory"), resumable(place):
            pytest.fail("there is no such place")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_a_place_that_vanishes_at_once_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be made in /proc, nor below a working directory that somebody has deleted."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for place in (Path("run"), Path("/proc/run")):
        with pytest.raises(UserError, match="name another directory"), resumable(place):
            pytest.fail("there is no such place")


def test_what_a_killed_process_was_writing_is_swept(tmp_path: Path) -> None:
    """Whatever `whole_directory` and `write_atomically` call their temporary files."""
    body = (
        "run = Path(sys.argv[1])\nos.fsync = lambda file: (print('ready', flush=True), time.sleep(60))\n"
        "with whole_directory(run / 'model') as half:\n    (half / 'weights').write_text('half')\n"
        "    write_json(run / 'seed-0' / 'result.json', {})"
    )
    (tmp_path / "seed-0").mkdir()
    (tmp_path / ".mine").touch()
    killed = process(body, tmp_path)
    killed.kill()
    killed.wait()
    assert len([path for path in tmp_path.rglob(".*") if path.name != ".mine"]) == 2
    with resumable(tmp_path):
        assert [path.name for path in tmp_path.rglob(".*")] in ([".mine", ".lock"], [".lock", ".mine"])


def test_a_run_is_known_by_all_that_decides_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, IDENTITY)
    for name in ("data", "logs"):  # of one that was stopped while it read its text, or of a failed piece of it
        (run / name).mkdir()
    claim(run, {**IDENTITY, "seed": 1})  # nothing had come of the first
    (run / "metrics.jsonl").touch()
    claim(run, {**IDENTITY, "seed": 1})
    for other, told in (
        (IDENTITY, "seed 1 -> 0"),
        (
            {"seed": 1, "model_files": {"config.json": "a", "pytorch_model.bin": "c"}},
            "model_files: 'pytorch_model.bin'",
        ),
        ({"seed": 1}, "another version of this program .*'model_files'"),
    ):
        with pytest.raises(UserError, match=told) as refused:
            claim(run, other)
        assert "\n" not in str(refused.value)
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        (run / RUN_FILE).write_bytes(content)
        with pytest.raises(UserError, match="damaged; delete"):
            claim(run, IDENTITY)


def test_a_place_with_something_else_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no run"):
        claim(tmp_path, IDENTITY)
    forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_flipped_bit_is_named_and_the_older_checkpoint_used(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert last_checkpoint(tmp_path) == newer
    flip(newer / name)
    with pytest.raises(UserError, match=rf"checkpoint-10: {name} is damaged"):
        check_whole(newer)
    assert last_checkpoint(tmp_path) == older and not newer.exists()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{newer}: {name} is damaged" in told and f"{older} is whole" in told


def test_where_no_checkpoint_is_whole_nothing_is_removed_and_the_run_does_not_start_again(tmp_path: Path) -> None:
    for step in (4, 8):
        flip(checkpoint(tmp_path, step) / "optimizer.pt")
    with pytest.raises(UserError, match=r"checkpoint-8: optimizer.pt is damaged.*put back a copy, or delete"):
        last_checkpoint(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"optimizer.pt": 1000}', b"[" * 100_000, b"\xff", bytes(100)])
def test_a_record_that_cannot_be_read_is_no_whole_checkpoint(content: bytes, tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    (newer / "complete.json").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        check_whole(newer)
    assert last_checkpoint(tmp_path) == older


def test_half_written_checkpoints_are_removed(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    first, second = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    (second / "complete.json").unlink()
    (first / "notes.txt").write_text("a user's own")
    assert last_checkpoint(tmp_path) == first and not second.exists()
    (first / "optimizer.pt").unlink()  # as if it was being removed when the process was killed
    third = checkpoint(tmp_path, 3)
    assert last_checkpoint(tmp_path) == third and not first.exists()


def test_a_record_makes_nothing_be_read_that_is_no_file_of_the_checkpoint(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, 1)
    record = json.loads((directory / "complete.json").read_text())
    for name in ("/dev/zero", "../../secret", "a\nb"):
        (directory / "complete.json").write_text(json.dumps({**record, name: {"bytes": 0, "sha256": ""}}))
        with pytest.raises(UserError, match="is missing"):
            check_whole(directory)
