"""Kernel tests: every output buffer of every kernel is poisoned and guarded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from glyphcrm_kernels._shared import buffers as outputs
from glyphcrm_kernels._shared import gpus
from glyphcrm_kernels._shared.targets import Target

from tests.kernels.checks import GuardedBuffers


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedBuffers]:
    """Guarded, NaN-filled outputs for all kernels; the test places its inputs in such buffers, too."""
    guarded = GuardedBuffers()
    monkeypatch.setattr(outputs, "empty", guarded.empty)
    monkeypatch.setattr(outputs, "empty_nhwc", guarded.empty_nhwc)
    yield guarded
    guarded.assert_guards_unchanged()


@pytest.fixture(autouse=True)
def _rounded_bfloat16(rounded_bfloat16: None) -> None:
    """In all kernel tests the interpreter rounds as a GPU does."""


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Target], None]]:
    """Let fake tensors be on a GPU of a kind, an H100 unless another is asked for."""

    def change(target: Target) -> None:
        monkeypatch.setattr(gpus, "target_of", lambda device: target)

    def forget() -> None:
        gpus.gluon_obstacle.cache_clear()
        gpus._target_obstacle.cache_clear()

    monkeypatch.setattr(gpus, "INTERPRETED", False)
    monkeypatch.setattr(gpus, "_can_build", lambda: True)
    change(Target("cuda", 90))
    forget()
    yield change
    forget()
