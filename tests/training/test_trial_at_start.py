"""Pre-training lets one process try the kernels that "auto" would take, and goes on whatever comes out."""

from __future__ import annotations

import pytest
import torch
from glyphcrm_kernels import Choice
from glyphcrm_kernels.conv import record, trial

from glyphcrm.training import machine as machines
from glyphcrm.training.machine import Machine


@pytest.mark.parametrize(("reason", "index", "tries"), [(record.UNTRIED, 0, 1), (record.UNTRIED, 1, 0), ("", 0, 0)])
def test_one_process_tries_what_is_untried(
    monkeypatch: pytest.MonkeyPatch, reason: str, index: int, tries: int
) -> None:
    ran: list[int] = []
    asked: list[torch.Size] = []

    def chosen(op: str, x: torch.Tensor, *others: torch.Tensor) -> Choice:
        asked.append(x.shape)
        assert x.dtype == torch.bfloat16
        return Choice("triton", f"hopper: {reason}")

    monkeypatch.setattr(machines, "choice", chosen)
    monkeypatch.setattr(trial, "run", lambda: ran.append(1))
    Machine(torch.device("meta", index), bf16=True).try_convolutions(64)
    assert len(ran) == tries and asked == [(1, 64, 48, 48)] * (index == 0)


def test_on_a_cpu_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run", lambda: pytest.fail("tried"))
    Machine(torch.device("cpu")).try_convolutions(64)
