"""What charts of runs are drawn from."""

from __future__ import annotations

import pytest

from glyphcrm.training.figures import curve, without_pauses


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("paused_after", [0, 1, 40])
def test_a_pause_shifts_no_curve(every: int, paused_after: int) -> None:
    """Two seconds a step, every fifth log with a validation, and thirteen minutes of nothing."""
    logs = [{"step": step, "seconds": 2.0 * step} for step in range(every, 100 * every, every)]
    entries = [{"step": 0, "seconds": 0.0, "eval_loss": 1.0}]
    for number, log in enumerate(logs):
        entries += [log] if number % 5 else [log, {**log, "eval_loss": 1.0}]
    paused = [{**e, "seconds": e["seconds"] + 780 * (e["step"] > paused_after * every)} for e in entries]
    assert without_pauses(entries) == entries
    assert without_pauses(paused) == entries
    assert curve(paused, "seconds", "eval_loss") == curve(entries, "seconds", "eval_loss")
    assert without_pauses([]) == []


def test_slower_steps_are_no_pause() -> None:
    entries = [{"step": step, "seconds": float(step if step < 60 else 4 * step - 180)} for step in range(100)]
    assert without_pauses(entries) == entries
