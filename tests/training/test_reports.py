"""A run that is stopped and continued is one run to each tracker; a name that cannot serve is refused at once."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers.integrations.integration_utils as integrations

from glyphcrm.errors import UserError
from glyphcrm.training.reports import check_reports, reported
from tests.pretraining.runs import environment, main

HISTORY = [{"eval_loss": 3.0, "step": 0}, {"loss": 2.5, "step": 1}]
LAST = {"loss": 2.25, "step": 2}


def model() -> Any:
    return SimpleNamespace(config=None, num_parameters=lambda: 7)


def stopped_and_continued(tracker: str, run: Path) -> None:
    """Two entries, a pause, a third one."""
    for history, entries in (([], HISTORY), (HISTORY, [LAST])):
        with reported([tracker], "mine", {"rate": 1}, model(), run, True) as (record,):
            record.begin(history)
            for entry in entries:
                record.write(entry)


class Callback:
    """Stands for a tracker that begins a run each time."""

    said: list[tuple[str, int, dict[str, float] | None]]

    def __getattr__(self, event: str) -> Any:
        def hear(arguments: Any, state: Any, control: Any, model: Any, logs: Any = None) -> None:
            assert arguments.to_dict() == {"rate": 1} and arguments.run_name == "mine" and state.is_world_process_zero
            if logs == {"loss": 2.25} and fails:
                raise RuntimeError("no line")
            self.said.append((event, state.global_step, logs))

        fails = event == "on_log" and self.fails
        return hear

    fails = False


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> type[Callback]:
    monkeypatch.setitem(integrations.INTEGRATION_TO_CALLBACK, "mine", Callback)
    monkeypatch.setattr(Callback, "said", [], raising=False)
    monkeypatch.setattr(Callback, "fails", False)
    return Callback


def test_a_tracker_that_cannot_continue_a_run_gets_the_whole_course_anew(
    callback: type[Callback], tmp_path: Path
) -> None:
    stopped_and_continued("mine", tmp_path)
    begins = [("on_init_end", 0, None), ("on_train_begin", 0, None)]
    logs = [("on_log", 0, {"eval_loss": 3.0}), ("on_log", 1, {"loss": 2.5})]
    last = ("on_log", 2, {"loss": 2.25})
    assert callback.said == [*begins, *logs, ("on_train_end", 1, None), *begins, *logs, last, ("on_train_end", 2, None)]


def test_a_tracker_that_fails_is_told_of_once_and_ends_no_run(
    callback: type[Callback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(callback, "fails", True)
    with reported(["mine"], "mine", {"rate": 1}, model(), tmp_path, True) as (record,):
        record.begin([])
        for entry in [*HISTORY, LAST, LAST]:
            record.write(entry)
    assert capsys.readouterr().err == "\nmine: no line; nothing more is reported there\n"
    assert [step for event, step, _ in callback.said if event == "on_log"] == [0, 1]


def test_processes_that_are_not_the_first_report_nothing(tmp_path: Path) -> None:
    with reported(["tensorboard", "mine"], "mine", {}, model(), tmp_path, False) as records:
        assert records == []
    with reported(["none"], "mine", {}, model(), tmp_path, True) as records:
        assert records == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tensorbord"], "tensorbord is not supported, only .*wandb"),
        (["none", "tensorboard"], "with none there is no other"),
        (["dvclive"], "dvclive: .*pip install dvclive"),
    ],
)
def test_a_name_that_cannot_serve_is_one_line_before_any_work(
    names: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        check_reports(names)
    assert main(["--output-dir", str(tmp_path / "run"), "--report-to", *names]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="no wandb")
def test_wandb_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    stopped_and_continued("wandb", tmp_path)
    known = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert files and {file.stem for file in files} == {f"run-{known}"}


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="no mlflow")
def test_mlflow_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    stopped_and_continued("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert run.data.params == {"rate": "1"} and run.info.status == "FINISHED" and run.info.run_name == "mine"
    found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert found == [(1, 2.5), (2, 2.25)]


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="no trackio")
def test_trackio_continues_its_run(tmp_path: Path) -> None:
    """In a process of its own: trackio reads where to write when it is imported."""
    program = "from tests.training.test_reports import *; stopped_and_continued('trackio', Path(sys.argv[1]))"
    told = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment(**told), check=True, timeout=120)
    (database,) = tmp_path.glob("trackio/*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, metrics from metrics order by id").fetchall()
    assert len({name for name, _ in rows}) == 1
    assert [json.loads(row)["train/loss"] for _, row in rows if "train/loss" in json.loads(row)] == [2.5, 2.25]
