"""The host's time of a call is measured on any machine."""

from __future__ import annotations

import pytest
from glyphcrm_kernels._shared import cpu_library

from bench import host_time
from bench.cases import HOST, all_cases


@pytest.mark.skipif(host_time.DEVICE != "cpu", reason="the C functions serve a CPU")
@pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")
def test_nothing_is_computed_and_everything_is_back_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    function = cpu_library._function
    (case,) = (case for case in all_cases(HOST) if "3-way" in case.size)
    row = host_time.measure(case, "cpu", 1)
    assert cpu_library._function is function
    assert all(value > 0 for part in (row.forward, row.training) for value in part)
    header, rule, line = host_time.table([row])
    assert line.startswith("| add_norm 3-way, 2 rows, 1 x 16: cpu") and len(header) == len(rule) == len(line)
