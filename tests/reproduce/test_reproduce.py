"""`glyphcrm reproduce` from the text to RESULTS.md, at the size of a nano."""

from __future__ import annotations

import functools
import json
import random
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from glyphcrm.cli.entry import main
from glyphcrm.configuration import PRESETS
from glyphcrm.reproduce import stages, substitutions, trials
from glyphcrm.reproduce.held_out import choose_excluded
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import FEWEST_SAMPLES, Speed, make_plan
from tests.classic import TEXT

GOOD, BAD = TEXT[:20], TEXT[20:40]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    documents = ["".join(rng.choice(TEXT[:-2]) for _ in range(12)) + "。" for _ in range(300)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join("\n".join(documents[i : i + 6]) for i in range(0, 300, 6)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(1)
    directory = tmp_path_factory.mktemp("task")
    rows = ["label\ttext"]
    for _ in range(200):
        label, characters = rng.choice((("good", GOOD), ("bad", BAD)))
        rows.append(f"{label}\t{''.join(rng.choice(characters) for _ in range(8))}")
    (directory / "reviews.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    task = 'kind = "sentence"\ntrain = "reviews.tsv"\ntext = "text"\nlabel = "label"\nepochs = 1\n'
    (directory / "reviews.toml").write_text(task, encoding="utf-8")
    return directory / "reviews.toml"


def test_every_number_of_the_results_is_in_a_file_of_a_run(
    text_file: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "VALIDATION_SAMPLES", 8)
    few = tuple(v for v in trials.variants("nano") if v.name.endswith(("-rate", "-glyphs", "-decoder")))
    monkeypatch.setattr(stages, "variants", lambda preset: few)
    monkeypatch.setattr("glyphcrm.reproduce.report.variants", lambda preset: few)
    choose = functools.partial(choose_excluded, kept_most_frequent=5, most_share=0.9)
    monkeypatch.setattr("glyphcrm.reproduce.held_out.choose_excluded", choose)
    monkeypatch.setattr("glyphcrm.reproduce.held_out.HELD_OUT", 5)
    out = tmp_path / "out"
    look_alikes = tmp_path / "similar.txt"
    look_alikes.write_text("".join(f"{a},{b}\n" for a, b in zip(GOOD, BAD, strict=True)), encoding="utf-8")
    scores = tmp_path / "paper.json"
    scores.write_text('{"reviews": {"bert": 0.5, "glyphcrm": 0.75}}')
    command = [
        *("reproduce", "--preset", "nano", "--text", str(text_file), "--tasks", str(task_file), "--hours", "0.02"),
        *("--seeds", "2", "--max-length", "32", "--batch-size", "4", "--pretraining-steps", "10"),
        *("--train-samples", "64", "--output-dir", str(out), "--look-alikes", str(look_alikes)),
        *("--paper-scores", str(scores)),
    ]
    assert main(command) == 0
    results = (out / "report" / "RESULTS.md").read_text(encoding="utf-8")
    numbers = json.loads((out / "report" / "results.json").read_text(encoding="utf-8"))
    for name, number in numbers.items():
        assert (out / "report" / number["file"]).is_file(), name
    for link in re.findall(r"\]\(([^)]+)\)", results):
        assert (out / "report" / link).exists(), link
    for chart in ("pretraining.png", "scores.png", "look-alikes.png"):
        with Image.open(out / "report" / chart) as image:
            assert image.format == "PNG"
    assert "### Simplified to traditional" in results
    assert "75.00" in results  # the paper's
    summary = json.loads((out / "finetuning" / "reviews" / "bert" / "summary.json").read_text())
    assert f"{100 * summary['test']['accuracy']['mean']:.2f}" in results
    held_out = json.loads((out / "held_out.json").read_text(encoding="utf-8"))
    assert len(held_out["characters"]) == 5
    opened = json.loads((out / "open_prediction.json").read_text(encoding="utf-8"))
    assert opened["all"]["groups"] and opened["held_out"]["groups"] and "rows from pictures" in results
    # A second call finds everything done, and no training is started.
    monkeypatch.setattr(stages, "run_pretrain", pytest.fail)
    monkeypatch.setattr(stages, "run_finetune", pytest.fail)
    assert main(command) == 0


@pytest.mark.parametrize("preset", list(PRESETS))
def test_both_models_get_the_same_number_of_trials(preset: str) -> None:
    variants = trials.variants(preset)
    of_arch = {arch: [v for v in variants if v.arch == arch and not v.is_ablation] for arch in ("glyphcrm", "bert")}
    assert [v.arguments for v in of_arch["glyphcrm"]] == [v.arguments for v in of_arch["bert"]]
    assert len({variant.name for variant in variants}) == len(variants)
    assert len({(variant.arch, variant.arguments) for variant in variants}) == len(variants)


@pytest.mark.parametrize("hours", [0.5, 2.0, 8.0])
def test_a_plan_fits_into_its_time(hours: float, task_file: Path) -> None:
    options = ReproduceOptions(
        preset="tiny", text=(), data=None, tasks=(str(task_file),), output_dir=Path(), hours=hours, seeds=3,
        max_length=128, batch_size=32, vocabulary_size=7000, pretraining_steps=None, train_samples=None, without=(),
        bert_vocabulary=None, look_alikes=None, other_font=None, paper_scores=None,
    )  # fmt: skip
    tasks = stages.available_tasks(options)
    speed = {"glyphcrm": Speed(step=2.5, token=1e-3), "bert": Speed(step=0.6, token=2e-4)}
    plan = make_plan(options, speed, tasks, studied=5)
    both = 2.5 + 0.6
    pretraining = both * (plan.pretraining_steps + plan.held_out_steps + 4 * plan.study_steps)
    assert 0.5 * hours * 3600 < pretraining < 0.75 * hours * 3600
    assert plan.train_samples >= FEWEST_SAMPLES


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--hours", "0"], "--hours"),
        (["--data", "nowhere"], "nowhere"),
        (["--tasks", "no_such_task"], "no_such_task"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(
    arguments: list[str], culprit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments, "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and culprit in error and not (tmp_path / "out").exists()


def test_a_missing_opencc_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    substitutions._converter.cache_clear()
    assert main(["reproduce", "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "glyphcrm[reproduce]" in error and not (tmp_path / "out").exists()
