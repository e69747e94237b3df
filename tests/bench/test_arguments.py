"""A mistake on a bench's command line is a line with exit code 2, before anything is measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest

from bench import gpu_proof, host_time, learning, precision, step_time
from glyphcrm.errors import exit_code_of


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
        (host_time.main, "--rounds 0", "0; give a whole number, 1 or more"),
        (precision.main, "--model m --task t --test-samples -3", "-3; give a whole number, 1 or more"),
        (gpu_proof.main, "--dry-run --minutes 0", "'0' is no number of minutes"),
        (gpu_proof.main, "--dry-run --minutes nan", "'nan' is no number of minutes"),
        (gpu_proof.main, "--dry-run --text missing.txt", "missing.txt"),
        (learning.main, "missing", "missing"),
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
