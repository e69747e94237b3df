"""How kernels are started: as Triton itself would, for all that it distinguishes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from glyphcrm_kernels._shared import launch
from glyphcrm_kernels._shared.optional_triton import HAS_TRITON

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not HAS_TRITON, reason="there is no Triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, whose driver Triton takes")
def test_the_second_launch_gives_the_gpu_what_the_first_did() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
    command = [sys.executable, "-m", "tests.kernels.direct_launches"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 20


@pytest.mark.skipif(not HAS_TRITON, reason="there is no Triton")
def test_a_plan_with_an_empty_grid_starts_nothing() -> None:
    started: list[launch.Launch] = []
    with launch.intercepted(started.append):
        for grid in ((0,), (2, 0), (2,)):
            launch.Plan(_Kernel, grid, (3,), {"BLOCK": 4}).start(torch.zeros(1), None)
    (only,) = started
    assert only.grid == (2,) and only.arguments.keys() == {"x", "y", "n"} and only.arguments["n"] == 3


class _Kernel:
    arg_names = ("x", "y", "n", "BLOCK")
