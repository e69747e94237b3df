"""Pre-training lets one process try the kernels that "auto" would take, and goes on whatever comes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from glyphcrm_kernels import Choice
from glyphcrm_kernels._shared.memo import remembered
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
    assert len(ran) == tries and set(asked) == {(1, 64, 48, 48)}


def test_on_a_cpu_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run", lambda: pytest.fail("tried"))
    Machine(torch.device("cpu")).try_convolutions(64)


def test_after_the_trial_of_another_process_all_ask_again_and_differences_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed: list[int] = []
    gathered: list[Choice] = []

    @remembered
    def reason() -> str:
        return "" if passed else record.UNTRIED

    def gather(self: Machine, own: Any) -> list[Any]:
        gathered.append(own)
        return [Choice("triton", "hopper: its trial failed"), own, own]

    monkeypatch.setattr(machines, "choice", lambda *_: Choice("triton" if reason() else "hopper", reason()))
    monkeypatch.setattr(Machine, "wait", lambda self: passed.append(1))
    monkeypatch.setattr(Machine, "gather", gather)
    monkeypatch.setattr(trial, "run", lambda: passed.append(1))
    assert reason()  # as a check before the trial does
    Machine(torch.device("meta", 1), rank=1, world=3).try_convolutions(64)
    assert gathered == [Choice("hopper", "")] and not capsys.readouterr().out
    Machine(torch.device("meta", 0), rank=0, world=3).try_convolutions(64)
    said = capsys.readouterr().out
    assert "the slowest sets the pace: triton in 0 (hopper: its trial failed); hopper in 1, 2\n" in said
