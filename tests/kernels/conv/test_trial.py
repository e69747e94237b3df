"""The trial of the kernels for Hopper: what it finds, what ends it, what it leaves behind, and who believes that."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from glyphcrm_kernels import choice
from glyphcrm_kernels._shared import memo
from glyphcrm_kernels.conv import record, trial
from torch import Tensor

from tests.kernels.conv.test_hopper import FORWARD, WEIGHT, arguments, launched, on_gpu

__all__ = ["launched", "on_gpu"]
KIND = {"gpu": "NVIDIA H100", "capability": "9.0", "torch": "2.11", "triton": "3.6", "source": "ab"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Everything is on an H100, without records."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(record, "kind", lambda device_index: KIND)
    memo.forget()
    yield tmp_path
    memo.forget()


# What it finds --------------------------------------------------------------------------------------


def test_right_kernels_pass(launched: list[str]) -> None:
    """In the emulator, with the smallest of the tiles; NaN spreads as in the reference."""
    trial.try_layer(32, True, torch.float64, 2, "cpu")
    assert sorted(launched) == [FORWARD, FORWARD, WEIGHT]


def fused(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *options: Any) -> Tensor:
    """Round once, as a kernel does."""
    wide = None if residual is None else residual.double()
    return trial.glyph_conv_reference(x.double(), weight.double(), bias, wide, *options).to(x.dtype)


def test_kernels_that_round_once_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "HOPPER", fused)
    for side, pool in trial.LAYERS:
        trial.try_layer(side, pool, torch.bfloat16, 2, "cpu")


@pytest.mark.parametrize("fault", ["a tap", "an image", "nan", "a pixel"])
def test_wrong_kernels_do_not(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """What is off by as much as one of 81 taps, or loses one NaN, or leaves out the last image."""

    def broken(x: Tensor, weight: Tensor, bias: Tensor, residual: Any, relu: bool, pool: bool, padding: int) -> Tensor:
        if fault == "a tap":
            weight = weight.masked_fill(torch.arange(81).view(9, 9) == 40, 0)
        out = fused(x, weight, bias, residual, relu, pool, padding)
        if fault == "an image":
            out = out * (torch.arange(len(out)) < len(out) - 1).view(-1, 1, 1, 1)
        if fault == "a pixel":
            out = torch.cat([out[..., :1], out[..., :-1]], -1)
        return out.nan_to_num(0.0) if fault == "nan" else out

    monkeypatch.setattr(trial, "HOPPER", broken)
    for side, pool in trial.LAYERS:
        with pytest.raises(AssertionError, match="out: .*NaN" if fault in ("nan", "a pixel") else "relative RMS error"):
            trial.try_layer(side, pool, torch.bfloat16, 2, "cpu")


# What ends it ---------------------------------------------------------------------------------------


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


ENDS = {
    "passes": ("print('forward'); print('right, and 2.1 times as fast')", "", "right, and 2.1 times as fast"),
    "wrong": (
        "print('a'); raise AssertionError('dx: 7 NaN')",
        "AssertionError: dx: 7 NaN",
        "AssertionError: dx: 7 NaN",
    ),
    "crashes": (
        "import os, signal; print('48x48', flush=True); os.kill(os.getpid(), signal.SIGSEGV)",
        "48x48: killed by SIGSEGV",
        "48x48: killed by SIGSEGV",
    ),
    "hangs": (
        "import subprocess, sys; print('40x40', flush=True)\n"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
        "40x40: no end after 2 s",
        "40x40: no end after 2 s",
    ),
    "no memory": ("raise RuntimeError('CUDA out of memory')", None, "RuntimeError: CUDA out of memory"),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_is_a_line(end: str) -> None:
    program, failure, line = ENDS[end]
    start = time.monotonic()
    assert trial.attempt(python(program), limit=2.0) == (failure, line)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("error", "lost", "blamed"),
    [
        (AssertionError("dx: 7 NaN"), False, True),
        ("at 3:4:\n  does not compile", False, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors"), True, True),
        (torch.OutOfMemoryError("CUDA out of memory"), False, False),
    ],
)
def test_what_the_kernels_are_to_blame_for(
    monkeypatch: pytest.MonkeyPatch, error: Exception | str, lost: bool, blamed: bool
) -> None:
    """In one line with the name of the check, which is what a record is made of."""
    if isinstance(error, str):
        error = pytest.importorskip("triton").errors.TritonError(error)
    raised_by_check = error

    def synchronize() -> None:
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def check() -> None:
        raise raised_by_check

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(AssertionError if blamed else type(error)) as raised:
        trial._named("48x48", check)
    assert str(raised.value) == (f"48x48: {' '.join(str(error).split())}" if blamed else str(error))


def test_a_trial_that_nobody_waits_for_ends() -> None:
    left = subprocess.check_output(python(trial.ALONE + "print(signal.alarm(0))"), text=True)
    assert trial.LIMIT < int(left) <= 2 * trial.LIMIT
    assert trial.TRIAL[-1].startswith(trial.ALONE)


def test_what_is_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert record.read(KIND) is None
    assert trial.run(python("raise RuntimeError('busy')")) is False and record.read(KIND) is None
    assert "could not be tried after 0 s (RuntimeError: busy)" in capsys.readouterr().out
    assert trial.run(python("raise AssertionError('bad')")) is False and record.read(KIND) == "AssertionError: bad"
    assert "failed; the Triton kernels run in their place after" in capsys.readouterr().out
    assert trial.run(python("print('right')")) is True and record.read(KIND) == ""
    assert re.fullmatch(r"trying [^\n]+, once: passed after \d s \(right\)\n", capsys.readouterr().out)


def test_without_a_cache_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert trial.run(python("print('right')")) is True
    assert "could not be recorded" in capsys.readouterr().out
    assert record.read(KIND) is None


# Who believes it ------------------------------------------------------------------------------------


def test_auto_follows_the_record(on_gpu: Callable[..., None]) -> None:
    """Nothing is chosen anew before the trial says so."""
    chosen = choice("glyph_conv", *arguments())
    assert chosen == ("triton", f"hopper: {record.UNTRIED}") and record.COMMAND in chosen.reason
    assert trial.run(python("raise AssertionError('bad')")) is False
    chosen = choice("glyph_conv", *arguments())
    assert chosen.implementation == "triton" and "trial on this GPU failed (AssertionError: bad)" in chosen.reason
    assert trial.run(python("")) is True
    assert choice("glyph_conv", *arguments()) == ("hopper", "")


def test_a_record_is_read_once(on_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    record.write(KIND, "")
    assert choice("glyph_conv", *arguments()).implementation == "hopper"
    monkeypatch.setattr(record, "read", lambda kind: pytest.fail("read again"))
    assert choice("glyph_conv", *arguments(40)).implementation == "hopper"


@pytest.mark.parametrize("changed", KIND)
def test_what_has_changed_is_untried(changed: str) -> None:
    record.write(KIND, "")
    assert record.read(KIND) == "" and record.read({**KIND, changed: "other"}) is None


def test_a_change_of_the_source_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(record.__file__).parents[1]
    for folder in ("conv", "_shared"):
        (tmp_path / folder).mkdir()
        for path in package.glob(f"{folder}/*.py"):
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(record, "__file__", str(tmp_path / "conv" / "record.py"))
    digests = set()
    for name in ("conv/hopper_kernels.py", "_shared/gluon.py", "conv/hopper_tiles.py", "_shared/launch.py"):
        digests.add(record._source.__wrapped__())  # type: ignore[attr-defined]
        with open(tmp_path / name, "a") as file:
            file.write("# changed\n")
    assert len(digests) == 4


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_text(""),
    "text": lambda path: path.write_text("passed"),
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "another kind's": lambda path: path.write_text(json.dumps({"kind": {**KIND, "gpu": "x"}, "failure": ""})),
    "no text": lambda path: path.write_text(json.dumps({"kind": KIND, "failure": 0})),
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 5000),
    "long": lambda path: path.write_text(json.dumps({"kind": KIND, "failure": "x" * 5000})),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "unreadable": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_record_is_none(damage: str) -> None:
    record.write(KIND, "")
    path = record.path_of(KIND)
    DAMAGES[damage](path)
    assert record.read(KIND) is None


def test_without_a_home_there_is_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert record.read(KIND) is None


def test_two_at_once_leave_one_whole_record(cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda i: record.write(KIND, "x" * i), range(200)):
            assert record.read(KIND) is not None
    assert [path.name for path in (cache / "glyphcrm").iterdir()] == [record.path_of(KIND).name]


def test_elsewhere_there_is_nothing_to_try(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["trial"])
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert trial.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the kernels for Hopper need a GPU of compute capability 9.0, not cpu")
