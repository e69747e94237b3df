from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from glyphcrm.data.worker_processes import ordered_map
from glyphcrm.errors import UserError


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 9])
def test_the_order_is_that_of_the_items(workers: int) -> None:
    def slow_at_times(i: int) -> tuple[int, bytes]:
        time.sleep(0.01 * (i % 3 == 0))
        return i, bytes(i * 50_000)  # more than a pipe holds

    assert list(ordered_map(slow_at_times, range(8), workers)) == [(i, bytes(i * 50_000)) for i in range(8)]


def test_an_error_and_a_death_are_told() -> None:
    def fails(i: int) -> int:
        if i == 3:
            raise UserError("item 3 is bad")
        return i

    results = ordered_map(fails, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="item 3 is bad"):
        next(results)

    def killed(i: int) -> int:
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    with pytest.raises(UserError, match=r"has died \(exit code -9\).*fewer --workers"):
        list(ordered_map(killed, range(9), 2))


def test_no_process_outlives_a_killed_parent() -> None:
    program = (
        "import itertools, os, sys, time\nfrom glyphcrm.data.worker_processes import ordered_map\n"
        "for pid in ordered_map(lambda i: os.getpid(), itertools.count(), 3):\n"
        "    print(pid, flush=True)\n    time.sleep(0.01)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = {int(parent.stdout.readline()) for _ in range(6)}
        parent.kill()
    assert len(children) == 3
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(os.path.exists(f"/proc/{child}") for child in children)
