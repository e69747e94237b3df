"""The host's time is measured for every op, on any machine."""

from __future__ import annotations

import pytest
from glyphcrm_kernels._shared import cpu_library
from glyphcrm_kernels.registry import OPS

from bench import host_time


def test_every_op_has_a_small_case() -> None:
    assert host_time.SMALL.keys() == OPS.keys()


@pytest.mark.skipif(host_time.DEVICE != "cpu", reason="the C functions serve a CPU")
@pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")
def test_nothing_is_computed_and_everything_is_back_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    function = cpu_library._function
    row = host_time.measure("add_norm", "3-way", "cpu", 1)
    assert cpu_library._function is function
    assert all(value > 0 for part in (row.forward, row.training) for value in part)
    header, rule, line = host_time.table([row])
    assert line.startswith("| add_norm, 3-way: cpu") and len(header) == len(rule) == len(line)
