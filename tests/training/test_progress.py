"""What a run writes while it goes on: metrics.jsonl and TensorBoard's file."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glyphcrm.errors import UserError
from glyphcrm.training.progress import MetricsFile, TensorBoardFile, read_metrics
from tests.pretraining.runs import environment

HISTORY = [{"eval_loss": 3.0, "step": 0}, {"loss": 2.5, "step": 1}, {"loss": 2.25, "step": 2}]


def test_metrics_of_lost_steps_go(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.begin([])
    for entry in HISTORY:
        file.write(entry)
    assert read_metrics(file.path) == HISTORY
    file.begin(HISTORY[:2])
    file.write({"loss": 2.0, "step": 2})
    assert read_metrics(file.path) == [*HISTORY[:2], {"loss": 2.0, "step": 2}]


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"5", b'{"step": "x"}', b'{"loss": 1.0}', b"[" * 100_000, b""])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged"):
        read_metrics(path)


def test_tensorboard_shows_the_course_of_the_run_that_continued(tmp_path: Path) -> None:
    first = TensorBoardFile(tmp_path / "tensorboard")
    first.begin([])
    for entry in [*HISTORY, {"loss": 9.0, "step": 3}]:
        first.write(entry)
    # Continued from a checkpoint after step 2; step 3 was lost.
    second = TensorBoardFile(tmp_path / "tensorboard")
    second.path = second.path.with_name(f"{second.path.name}.1")
    second.begin(HISTORY)
    second.write({"loss": 2.0, "step": 3})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 2.5), (2, 2.25), (3, 2.0)]
    assert [(event.step, event.value) for event in found.Scalars("eval/loss")] == [(0, 3.0)]
    # And begun again, after it was killed before its first checkpoint.
    third = TensorBoardFile(tmp_path / "tensorboard")
    third.path = third.path.with_name(f"{third.path.name}.2")
    third.begin([])
    third.write({"loss": 7.0, "step": 1})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 7.0)]
    assert found.Scalars("eval/loss") == []


def test_a_disk_that_is_full_for_tensorboard_is_an_oserror_and_no_thread_dies(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from glyphcrm.training.progress import TensorBoardFile\n"
        "file = TensorBoardFile(Path(sys.argv[1])); file.begin([])\n"
        "try:\n"
        "    for step in range(100): file.write({'loss': 1.0, 'step': step})\n"
        "except OSError as error: print('caught', error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith("caught 27") and done.stderr == "" and done.returncode == 0
