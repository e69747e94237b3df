"""Kernel tests: every output buffer of every kernel is poisoned and guarded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from glyphcrm_kernels._shared import buffers as outputs

from tests.kernels.checks import GuardedBuffers


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedBuffers]:
    """Guarded, NaN-filled outputs for all kernels; the test places its inputs in such buffers, too."""
    guarded = GuardedBuffers()
    monkeypatch.setattr(outputs, "empty", guarded.empty)
    yield guarded
    guarded.assert_guards_unchanged()


@pytest.fixture(autouse=True)
def _rounded_bfloat16(rounded_bfloat16: None) -> None:
    """In all kernel tests the interpreter rounds as a GPU does."""
