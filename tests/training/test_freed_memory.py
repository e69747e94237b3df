"""Freed memory stays with the process; counted in pages that the kernel had to give."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.pretraining.runs import environment

# Rounds of what a training step does: large blocks, all alive at once, then all freed.
PROGRAM = """
import ctypes, resource, sys
import torch
from glyphcrm.training.freed_memory import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def round_of_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(n << 20) for n in (3, 12, 25, 12)]  # of 4 bytes each
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([round_of_pages() for _ in range(8)][-1])
"""
PAGES = (3 + 12 + 25 + 12) * 4 * 2**20 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what it tells")
@pytest.mark.parametrize(("how", "low", "high"), [("leave", 0.4, 2.0), ("keep", 0.0, 0.02)])
def test_in_the_end_a_round_touches_no_new_page(how: str, low: float, high: float) -> None:
    """Which each round does without it, so that the count means something."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, env=environment(), timeout=120, check=True
    )
    assert low * PAGES <= int(done.stdout) <= high * PAGES
