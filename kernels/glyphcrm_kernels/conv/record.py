"""What trial.py has shown of the kernels for Hopper on this machine: "auto" takes them where they have passed.

A record is a file in the user's cache, of one kind of GPU, of PyTorch and Triton, and of the source: whatever changes,
the kernels are untried again. What cannot be read or is another's is no record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from glyphcrm_kernels._shared.gpus import hopper_obstacle
from glyphcrm_kernels._shared.memo import remembered
from glyphcrm_kernels._shared.optional_triton import triton

COMMAND = "python -m glyphcrm_kernels.conv.trial"
MOST_BYTES = 4096
UNTRIED = f"they have not been tried on this GPU, which `{COMMAND}` does"


def drawback(tensor: Tensor) -> str:
    """Return why "auto" passes the kernels over where `tensor` is and they could run, or an empty string."""
    return "" if hopper_obstacle(tensor) else _drawback(tensor.device.index)


@torch.compiler.assume_constant_result
def _drawback(device_index: int | None) -> str:
    return _drawback_on(device_index or 0)


@remembered
def _drawback_on(device_index: int) -> str:
    failure = read(kind(device_index))
    if failure is None:
        return UNTRIED
    return failure and f"their trial on this GPU failed ({failure}); `{COMMAND}` repeats it"


def kind(device_index: int) -> dict[str, str]:
    """Return what a record is of."""
    gpu = torch.cuda.get_device_properties(device_index)
    versions = {"torch": str(torch.__version__), "triton": str(triton.__version__)}
    return {"gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", **versions, "source": _source()}


@remembered
def _source() -> str:
    """Return a digest of the kernels and of what starts and tries them."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted([*package.glob("_shared/*.py"), *package.glob("conv/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def path_of(kind: dict[str, str]) -> Path:
    """Return where the record of a kind is; raise `RuntimeError` where the user has no home."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]
    return Path(cache, "glyphcrm", f"hopper-{name}.json")


def read(kind: dict[str, str]) -> str | None:
    """Return why the trial failed, an empty string if it passed, None if there is no record."""
    try:
        path = path_of(kind)
        if not path.is_file():  # a pipe would have to be waited for
            return None
        with path.open("rb") as file:
            record = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RuntimeError):
        return None
    failure = record.get("failure") if isinstance(record, dict) and record.get("kind") == kind else None
    return failure if isinstance(failure, str) else None


def write(kind: dict[str, str], failure: str) -> None:
    """Keep an outcome, whole or not at all; raise `OSError` or `RuntimeError` where that is impossible."""
    path = path_of(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump({"kind": kind, "failure": failure}, file)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
