"""A mistake on a bench's command line is a line with exit code 2, before anything is measured."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import gpu_proof, host_time, learning, precision, pretraining_step, step_time
from bench.environment import ROOT
from bench.throughput import material
from bench.throughput.options import add_options, read_options
from glyphcrm.errors import UserError, exit_code_of


@pytest.mark.parametrize("text", ["32", "axb", "0x5", "5x0", "1x2x3"])
def test_shapes(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        step_time.main(["--shapes", "8x64", text])
    assert f"{text!r} is not SEQUENCESxTOKENS" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("main", "words", "culprit"),
    [
        (step_time.main, "--rounds 0", "0; give a whole number, 1 or more"),
        (step_time.main, "--text missing.txt", "missing.txt"),
        (step_time.main, "--preset nano --shapes 8x64 2x4", "2x4; tokens a sequence go from 5 to 64"),
        (step_time.main, "--preset nano --shapes 8x64 2x65", "2x65; tokens a sequence go from 5 to 64"),
        (step_time.main, "--json none/times.json", "'none/times.json' cannot be written"),
        (step_time.main, "--markdown .", "'.' cannot be written"),
        (pretraining_step.main, "--output none --batch-size 0", "0; give a whole number, 1 or more"),
        (host_time.main, "--rounds 0", "0; give a whole number, 1 or more"),
        (precision.main, "--model m --task t --test-samples -3", "-3; give a whole number, 1 or more"),
        (gpu_proof.main, "--dry-run --minutes 0", "'0' is no number of minutes"),
        (gpu_proof.main, "--dry-run --minutes nan", "'nan' is no number of minutes"),
        (gpu_proof.main, "--dry-run --text missing.txt", "missing.txt"),
        (learning.main, "missing", "missing: no run of pretrain.py"),
    ],
)
def test_one_line(
    main: Callable[[], int],
    words: str,
    culprit: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # a proof changes it
    monkeypatch.setattr(sys, "argv", ["bench", *words.split()])
    try:
        code: object = exit_code_of(main)
    except SystemExit as end:
        code = end.code
    assert code == 2 and culprit in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("bench", "words", "culprit"),
    [
        ("host_time", "--only nonsense", "no row has all words of 'nonsense'; rows are like 'add_norm"),
        ("static_report", "--quick --only nonsense", "no launch has all of ['nonsense'] in its name; names are like"),
        ("static_report", "--json none/report.json", "'none/report.json' cannot be written"),
    ],
)
def test_kernels_that_are_not_there(
    bench: str, words: str, culprit: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    program = importlib.import_module(f"bench.{bench}")
    monkeypatch.setattr(program, "INTERPRETED", False)  # as in the tests' process
    monkeypatch.setattr(sys, "argv", ["bench", *words.split()])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert culprit in capsys.readouterr().err.splitlines()[-1]


def test_a_step_of_the_throughput_bench_is_made_of_its_micro_batches() -> None:
    parser = pytest.Parser(_ispytest=True)
    parser.addoption("--benchmark", action="store_true")
    add_options(parser)
    given = parser.parse_known_args(["--throughput-micro-batch", "3"])
    config: Any = SimpleNamespace(getoption=lambda name: getattr(given, name[2:].replace("-", "_")))
    with pytest.raises(UserError, match="a step of 4 sequences is no multiple of --throughput-micro-batch 3"):
        read_options(config)


def test_a_mistake_ends_the_throughput_bench() -> None:
    command = [sys.executable, "-m", "pytest", "bench/test_throughput.py", "-p", "no:cacheprovider"]
    command += ["--throughput-reviews", "missing.txt", "--throughput-text", "missing.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no tests ran" in done.stdout, done.stdout
    assert "! _pytest.outcomes.Exit: error: missing.txt: no such file !" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 characters, all texts together 3 distinct ones; give 64 and 12 or more"):
        material.Material(material.sizes("nano"), [["天地。天"], ["天地。天"]], [], tmp_path)
    blank = tmp_path / "blank.txt"
    blank.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"blank\.txt: no text"):
        material.reviews(str(blank))
