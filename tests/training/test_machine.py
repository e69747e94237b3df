"""Two processes of torchrun come together and part, whether the work ends well or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, warnings
warnings.simplefilter("error")
import torch, torch.distributed as dist
from glyphcrm.training.machine import Machine
with Machine.joined("x") as machine:
    assert machine.sum(torch.ones(1)).item() == 2
    if sys.argv[1] == "error" and machine.is_first:
        raise ValueError("the first one ends")
    machine.wait()
assert not dist.is_initialized()
sys.stdout.write("parted\\n")
"""


@pytest.mark.parametrize("end", ["normal", "error"])
def test_processes_part(tmp_path: Path, end: str) -> None:
    """Without a word; and nobody waits, for a day, for one that has failed."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(program),
        end,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if end == "normal":
        assert done.returncode == 0 and done.stdout.split() == ["parted"] * 2, done.stderr
        assert "destroy_process_group" not in done.stderr
    else:
        assert done.returncode != 0 and "the first one ends" in done.stderr and "parted" not in done.stdout
