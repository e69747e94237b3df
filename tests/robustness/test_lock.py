"""Two runs in one directory: the second is refused in one line, the first ends as if alone; the killed one is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretraining.runs import REPOSITORY, environment
from tests.robustness.kill_matrix import Setup, appears, outcome
from tests.robustness.test_kills import finetuning, pretraining, setups

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with text.txt and sentences.toml."""
    directory = tmp_path_factory.mktemp("inputs")
    setups(directory)
    return directory


def setup_of(kind: str, inputs: Path) -> Setup:
    """Return a run of one or two processes."""
    if kind == "fine-tuning":
        return Setup(finetuning(inputs / "sentences.toml"), ())
    command = pretraining(inputs / "text.txt", "--micro-batch-size", "2", "--workers", "0")
    return Setup(command, (), ranks=2 if "2 processes" in kind else 1)


KINDS = (
    "pre-training",
    pytest.param("pre-training, 2 processes", marks=pytest.mark.slow),
    pytest.param("fine-tuning", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_is_refused_and_the_first_undisturbed(kind: str, inputs: Path, tmp_path: Path) -> None:
    setup = setup_of(kind, inputs)
    alone = setup.start(tmp_path / "alone")
    assert alone.wait() and set(alone.exit_codes) == {0}, alone.said()[-2000:]
    run = tmp_path / "run"
    first = setup.start(run)
    assert first.wait((run / "run.json").exists) and not first.ended
    first.signal(signal.SIGSTOP)  # it is at work until the other has ended
    if setup.ranks > 1:
        program = [*TORCHRUN, str(REPOSITORY / "pretrain.py"), *setup.command[1:], "--output-dir", str(run)]
        second = subprocess.run(
            program, capture_output=True, text=True, env=environment(), timeout=240, stdin=subprocess.DEVNULL
        )
        assert second.returncode != 0  # torchrun's own
        said = second.stderr
    else:
        again = setup.start(run)
        again_began = run.with_suffix(".log").stat().st_size
        assert again.wait() and again.exit_codes == [2], again.said()
        said = run.with_suffix(".log").read_bytes()[again_began:].decode().replace("\r", "\n")
    first.signal(signal.SIGCONT)
    errors = [line for line in said.split("\n") if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert f"{run} is in use by process {first.pid} on" in errors[0]
    assert first.wait() and set(first.exit_codes) == {0}, first.said()[-2000:]
    assert outcome(run) == outcome(tmp_path / "alone")
    assert not list(run.rglob(".*"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_leaves_the_directory_free_however_it_ends(kind: str, inputs: Path, tmp_path: Path) -> None:
    setup, run = setup_of(kind, inputs), tmp_path / "run"
    first = setup.start(run)
    assert (
        first.wait(appears(run, "seed-0/checkpoint-*" if kind == "fine-tuning" else "checkpoint-*")) and not first.ended
    )
    first.kill()
    assert (run / ".lock").exists()
    again = setup.start(run)
    assert again.wait() and set(again.exit_codes) == {0}, again.said()[-2000:]
    assert not list(run.rglob(".*"))
