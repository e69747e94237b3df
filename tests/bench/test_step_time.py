"""The table of training steps beside BERT's, at the size of tests: every way takes its steps, and all are told."""

from __future__ import annotations

import copy
import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import step_time
from glyphcrm.errors import UserError
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.pretraining.objective import PretrainingObjective
from glyphcrm.training.machine import Machine
from tests.training import emulated_graphs


def test_every_way_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。" * 3 for _ in range(60)), encoding="utf-8")
    record, report = tmp_path / "times.json", tmp_path / "times.md"
    words = ["--preset", "nano", "--rounds", "1", "--text", str(text), "--json", str(record), "--markdown", str(report)]
    assert step_time.main(words) == 0
    found = json.loads(record.read_text("utf-8"))
    ways = [row["way"] for row in found["rows"]]
    expected = ["BERT", "BERT, masked logits", "GlyphCRM, padded", "GlyphCRM, packed"]
    assert ways == [*expected, *([step_time.RECORDED] if torch.cuda.is_available() else []), step_time.STILL]
    assert all(row["milliseconds"] > 0 and math.isfinite(row["loss"]) for row in found["rows"])
    assert found["rows"][0]["beside_bert"] == found["rows"][1]["beside_masked"] == 1
    # Real tokens a second, whatever the padding: all ways take the same steps.
    assert len({round(row["tokens_per_second"] * row["milliseconds"]) for row in found["rows"]}) == 1
    assert len(found["hanglyph"]) == 1
    assert capsys.readouterr().out.rstrip().endswith(report.read_text("utf-8").rstrip())


def test_a_shape_that_does_not_fit_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures have no room, for example, which a run of pre-training tells its user."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text, record = tmp_path / "text.txt", tmp_path / "times.json"
    text.write_text("\n\n".join("天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。" * 3 for _ in range(60)), encoding="utf-8")

    def measured(shape: str, *_: Any) -> Iterator[step_time.Row]:
        yield step_time.Row(shape, step_time.PEER, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0)
        if shape == "2x24":
            raise UserError("the GPU's memory has no room")

    monkeypatch.setattr(step_time, "measure", measured)
    words = ["--preset", "nano", "--shapes", "2x24", "2x32", "--rounds", "1", "--text", str(text)]
    assert step_time.main([*words, "--json", str(record)]) == 1
    found = json.loads(record.read_text("utf-8"))
    assert [row["shape"] for row in found["rows"]] == ["2x24", "2x32"] and len(found["hanglyph"]) == 1


def test_recordings_of_a_shape_are_gone_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they hold most of the memory that the next ones need."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。" * 3 for _ in range(60)), encoding="utf-8")
    recorders: weakref.WeakSet[Any] = weakref.WeakSet()
    left: list[int] = []
    measure = step_time.measure

    def recorder(device: torch.device) -> emulated_graphs.EmulatedGraphs:
        made = emulated_graphs.EmulatedGraphs()
        recorders.add(made)
        return made

    def counting(*arguments: Any) -> Iterator[step_time.Row]:
        left.append(len(recorders))
        yield from measure(*arguments)
        assert all(each.replayed for each in recorders)
        left.append(len(recorders))

    emulated_graphs.as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(step_time, "no_graph_because", lambda *_, **__: "")
    monkeypatch.setattr(step_time, "CudaRecorder", recorder)
    monkeypatch.setattr(step_time, "measure", counting)
    monkeypatch.setattr(step_time, "measure_hanglyph", lambda *_: ())
    words = ["--preset", "nano", "--shapes", "2x24", "2x32", "--rounds", "1", "--text", str(text)]
    assert step_time.main(words) == 0
    assert left == [0, 2, 0, 2]


def test_features_of_still_convolutions_are_memory(model: GlyphCRMForPreTraining) -> None:
    nothing: Any = ()
    cpu = Machine(torch.device("cpu"))
    objective = PretrainingObjective(nothing, nothing, 1, cpu, 1)
    moving, still = (step_time.Way(copy.deepcopy(model), objective, cpu, (), still=held) for held in (False, True))
    moving.peak = still.peak = 1
    features = still.model.glyphcrm.hanglyph.still
    more = (features.block1.nbytes + features.block2.nbytes) / 1e9
    assert more > 0 and still.gigabytes - moving.gigabytes == pytest.approx(more)
