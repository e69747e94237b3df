"""What Triton's compiler makes of the kernels for Hopper, ahead of time: no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from glyphcrm_kernels._shared import gpus

ROOT = Path(__file__).parents[3]
SHARED_BYTES = 227 * 1024  # of a program

if found := gpus.gluon_obstacle():
    pytest.skip(found, allow_module_level=True)


SOME = ["forward 48", "pooled 32", "data gradient 48", "weight gradient 32"]


@pytest.mark.parametrize(
    ("dtype", "names"),
    [("bfloat16", SOME), *(pytest.param(dtype, [], marks=pytest.mark.slow) for dtype in ("bfloat16", "float16"))],
    ids=["some", "bfloat16", "float16"],
)
def test_every_launch_keeps_to_tensor_cores_and_tma(dtype: str, names: list[str]) -> None:
    """No spill and no stack; the matrix instructions that the tile asks for, asynchronous; all loads by TMA."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
    command = [sys.executable, "-m", "tests.kernels.conv.hopper_compiled", dtype, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    launches = json.loads(done.stdout)
    assert len(launches) == (len(names) or 10)
    for launch in launches:
        assert launch["stack"] == launch["spills"] == launch["other copies"] == 0, launch
        assert launch["shared"] <= SHARED_BYTES and launch["registers"] <= 255, launch
        assert launch["products"] == launch["wanted"], launch
        assert launch["copies"] > 0 and launch["waits"] == launch["wanted waits"], launch
        # After each wait for products a barrier stands before the next copy: other warps may still read.
        assert launch["unguarded"] == 0, launch
