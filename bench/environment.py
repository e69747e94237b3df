"""What a speed depends on beside the code: versions and the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def versions(packages: Iterable[str], absent: str | None = None) -> dict[str, str | None]:
    """Return name -> version, `absent` for a package that is not installed; torch's says which build it is."""
    found = {}
    for name in packages:
        try:
            found[name] = str(torch.__version__) if name == "torch" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = absent
    return found


def machine() -> dict[str, str | int]:
    """Return the processor's name and the number of threads that PyTorch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"cpu": next(names, platform.processor() or platform.machine()), "threads": torch.get_num_threads()}


def first_line(*command: str) -> str:
    """Return the first line that a command prints in the repository, or "unknown"."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.partition("\n")[0]
