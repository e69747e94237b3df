"""What a speed depends on beside the code: versions and the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "triton", "glyphcrm")


def versions() -> dict[str, str]:
    """Return name -> version; "-" for a package that is not installed."""
    return {**{name: _version(name) for name in PACKAGES}, "python": platform.python_version()}


def machine() -> dict[str, str | int]:
    """Return the processor's name and the number of threads that PyTorch uses."""
    return {"cpu": _cpu(), "threads": torch.get_num_threads()}


def commit() -> str:
    """Return the commit that is checked out, or "unknown" outside of a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
