"""`glyphcrm reproduce` from the text to RESULTS.md, at the size of a nano."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from glyphcrm.cli.entry import main
from glyphcrm.config_values import PRESETS
from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.reproduce import held_out, report, run, stages, substitutions, trials
from glyphcrm.reproduce.held_out import choose_excluded
from glyphcrm.reproduce.kept import keep
from glyphcrm.reproduce.options import FEWEST_STEPS, ReproduceOptions
from glyphcrm.reproduce.plan import FEWEST_SAMPLES, Plan, Speed, make_plan, makespan
from glyphcrm.reproduce.side_by_side import Job, Workers
from glyphcrm.tasks import Splits, Task, TextExample, find_task
from glyphcrm.training.run_directory import claim, resumable
from tests.classic import TEXT
from tests.glyphs.font_files import part_of_default_font
from tests.robustness.processes import warm_up

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


@pytest.fixture(scope="module")
def command(text_file: Path, task_file: Path) -> list[str]:
    look_alikes = task_file.parent / "similar.txt"
    look_alikes.write_text("".join(f"{a},{b}\n" for a, b in zip(GOOD, BAD, strict=True)), encoding="utf-8")
    return [
        *("reproduce", "--preset", "nano", "--text", str(text_file), "--tasks", str(task_file), "--hours", "0.02"),
        *("--seeds", "2", "--max-length", "32", "--batch-size", "4", "--pretraining-steps", "10"),
        *("--train-samples", "64", "--look-alikes", str(look_alikes), "--side-by-side", "2"),
    ]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a package of the default font's name, which has few of its characters."""
    directory = tmp_path_factory.mktemp("packages")
    characters = TEXT + substitutions.to_traditional(TEXT) + "".join(map(chr, range(0x4E00, 0x4F00)))
    package = directory / Path(default_font().path).parent.name
    part_of_default_font(package / default_font().path.name, characters)
    (package / "__init__.py").touch()
    return directory


def work(words: list[str], packages: Path, log: Path) -> None:
    """Do the command in this process, a group of its own, with fewer settings to compare and characters to hold out."""
    os.setsid()
    os.environ["PYTHONPATH"] = str(packages)  # of the processes that work
    sys.path.insert(0, str(packages))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    tried = {"glyphcrm-rate", "bert-rate", "glyphcrm-half-rate", "bert-half-rate", "glyphcrm-free-glyphs"}
    few = tuple(variant for variant in trials.variants("nano") if variant.name in tried)
    for module in (stages, run, report):
        module.variants = lambda preset: few  # type: ignore[attr-defined]
    stages.VALIDATION_SAMPLES = 8
    held_out.HELD_OUT = 5
    held_out.choose_excluded = functools.partial(choose_excluded, kept_most_frequent=5, most_share=0.9)
    sys.exit(main(words))


class Reproduction:
    """The command in a process of its own, until it ends or is killed."""

    def __init__(self, command: list[str], packages: Path, out: Path) -> None:
        warm_up()
        self.out, self.log = out, out.with_suffix(".log")
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=work, args=([*command, "--output-dir", str(out)], packages, self.log))
        self.process.start()

    def end(self) -> int | None:
        self.process.join(500)
        return self.process.exitcode

    def kill_at(self, pattern: str) -> None:
        """Kill it with SIGKILL as soon as there is such a file; all that it has started ends, too."""
        while not any(self.out.glob(pattern)):
            assert self.process.is_alive(), self.log.read_text()
            time.sleep(0.01)
        workers = writers(self.out)
        assert workers
        self.process.kill()
        self.process.join()
        for _ in range(1000):
            if not writers(self.out):
                return
            time.sleep(0.02)
        pytest.fail(f"{writers(self.out)} are left")


def writers(out: Path) -> list[str]:
    """Return the processes whose output goes to a log of a run."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):
            if descriptor.readlink().is_relative_to(out / "logs"):
                found.append(descriptor.parts[2])
    return found


@pytest.fixture(scope="module")
def finished(command: list[str], packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reproduction that nobody disturbed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    reproduction = Reproduction(command, packages, out)
    assert reproduction.end() == 0, reproduction.log.read_text()
    return out


def test_every_number_of_the_results_is_in_a_file_of_a_run(finished: Path, command: list[str], packages: Path) -> None:
    out = finished
    results = (out / "report" / "RESULTS.md").read_text(encoding="utf-8")
    numbers = json.loads((out / "report" / "results.json").read_text(encoding="utf-8"))
    for name, number in numbers.items():
        assert (out / "report" / number["file"]).is_file(), name
    for link in re.findall(r"\]\(([^)]+)\)", results):
        assert (out / "report" / link).exists(), link
    for chart in ("pretraining.png", "scores.png", "look-alikes.png"):
        with Image.open(out / "report" / chart) as image:
            assert image.format == "PNG"
    assert "### Simplified to traditional" in results and "## Runs that failed" not in results
    summary = json.loads((out / "finetuning" / "reviews" / "bert" / "summary.json").read_text())
    assert f"{100 * summary['test']['accuracy']['mean']:.2f}" in results
    found = json.loads((out / "held_out.json").read_text(encoding="utf-8"))
    assert len(found["characters"]) == 5 and found["accuracy"].keys() == {"glyphcrm", "bert"}
    table = results[results.index("| set | GlyphCRM | BERT | GlyphCRM, paper | BERT, paper |") :].split("\n\n")[0]
    assert table in out.with_suffix(".log").read_text(encoding="utf-8")
    # What is kept: the same report, and both models in half precision.
    assert (out / "keep" / "report" / "RESULTS.md").read_text(encoding="utf-8") == results
    for choice in json.loads((out / "choices.json").read_text()).values():
        kept = load_file(out / "keep" / "models" / Path(choice["directory"]).name / "model.safetensors")
        assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float16}
    opened = json.loads((out / "open_prediction.json").read_text(encoding="utf-8"))
    assert opened["all"]["groups"] and opened["held_out"]["groups"] and "rows from pictures" in results
    # A second call finds everything done, and no training is started.
    logs = {path: path.stat().st_size for path in (out / "logs").iterdir()}
    assert Reproduction(command, packages, out).end() == 0
    assert {path: path.stat().st_size for path in (out / "logs").iterdir()} == logs
    assert (out / "report" / "RESULTS.md").read_text(encoding="utf-8") == results


@pytest.mark.slow
def test_a_reproduction_that_is_killed_twice_ends_with_the_same_report(
    finished: Path, command: list[str], packages: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for moment in ("study/*/checkpoint-2", "finetuning/reviews/*/seed-0"):
        Reproduction(command, packages, out).kill_at(moment)
    last = Reproduction(command, packages, out)
    assert last.end() == 0, last.log.read_text()
    ours, theirs = ((of / "report" / "RESULTS.md").read_text(encoding="utf-8") for of in (out, finished))
    times = re.compile(r"(?m)^\| written on .*|(?<=%) \| \d+ \|$")  # and the minutes of pre-training
    assert times.sub("", ours) == times.sub("", theirs)
    ours, theirs = (
        json.dumps(_without_times(json.loads((of / "report" / "results.json").read_text()))) for of in (out, finished)
    )
    assert ours == theirs


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key != "seconds"}
    return list(map(_without_times, value)) if isinstance(value, list) else value


def test_what_is_too_large_is_not_kept_and_named(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "RESULTS.md").write_text("# Results\n")
    runs = [tmp_path / name for name in ("one", "two", "failed")]
    for run_dir in runs[:2]:
        (run_dir / "model").mkdir(parents=True)
        (run_dir / "model" / "config.json").write_text('{"model_type": "bert"}')
        save_file({"weight": torch.ones(50_000)}, run_dir / "model" / "model.safetensors")
    (tmp_path / "keep" / "models" / ".one.a1b2c3d4").mkdir(parents=True)  # of a process that was killed
    for limit, kept in ((350_000, {"one", "two"}), (250_000, {"one"}), (150_000, set())):
        keep(tmp_path, runs, limit)
        assert {path.name for path in (tmp_path / "keep" / "models").iterdir()} == kept
        assert sum(path.stat().st_size for path in (tmp_path / "keep").rglob("*") if path.is_file()) <= limit
        left_out = (tmp_path / "keep" / "LEFT_OUT.txt").read_text().splitlines()
        assert len(left_out) == 2 - len(kept) and all(f"{tmp_path}/" in line and "0.1 MB" in line for line in left_out)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--text", "nowhere*.txt"], r"no file matches 'nowhere\*.txt'"),
        (["--data", "nowhere"], r"nowhere: no folder of a task there; give --data a folder with any of (\w+, )+\w+"),
    ],
)
def test_a_wrong_path_is_told_before_anything_is_written(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "claim", None)
    assert main(["reproduce", *words, "--output-dir", str(tmp_path / "new")]) == 2
    assert re.fullmatch(f"error: {complaint}\n", capsys.readouterr().err) and not (tmp_path / "new").exists()


def test_a_reproduction_that_has_measured_nothing_gives_way_to_other_settings(tmp_path: Path) -> None:
    claim(tmp_path, {"text": "damaged.txt"})

    def fail(jobs: list[Job]) -> bool:
        for job in jobs:
            job.made.parent.mkdir(parents=True)
            Path(job.arguments[job.arguments.index("--data-dir") + 1]).mkdir(exist_ok=True)
        (tmp_path / "logs").mkdir()
        return False

    workers = SimpleNamespace(run=fail, at_once=1, failures=["alone: not UTF-8"])
    with pytest.raises(UserError, match="alone: not UTF-8"):
        stages.probe(ReproduceOptions(output_dir=tmp_path), workers)  # type: ignore[arg-type]
    claim(tmp_path, {"text": "mended.txt"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"text": "mended.txt"}


def test_a_setting_loses_by_what_it_does_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that diverged has lost; while one had no room on the disk, nothing is chosen."""
    plan = Plan(10, 1, 6, 4, 64, 1, {arch: Speed(1.0, 1.0, 1.0) for arch in stages.ARCHITECTURES})
    workers = SimpleNamespace(run=lambda jobs: False, failures=["rate: diverged", "half-rate: no space"], diverged=[])
    workers.diverged = workers.failures[:1]
    options = ReproduceOptions(preset="nano", output_dir=tmp_path)
    losses = {"glyphcrm-half-rate": 3.0, "glyphcrm-double-rate": 2.0, "bert-rate": 1.0}
    monkeypatch.setattr(stages, "studied_loss", lambda _o, _p, variant: losses.get(variant.name, math.inf))
    with pytest.raises(UserError, match=r"cannot be compared yet; the same command tries again.*: half-rate: no space"):
        stages.run_study(options, plan, workers)  # type: ignore[arg-type]
    workers.failures.pop()
    chosen = stages.run_study(options, plan, workers)  # type: ignore[arg-type]
    assert [choice.directory for choice in chosen.values()] == ["study/glyphcrm-double-rate", "study/bert-rate"]
    assert not workers.failures


def test_a_disk_that_is_full_for_what_is_kept_is_told_as_one(tmp_path: Path) -> None:
    """An error with a number, which is told in one line; that of copytree has none."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "RESULTS.md").write_bytes(bytes(5000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="make room"), resumable(tmp_path):
            keep(tmp_path, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_kept_models_are_found_from_wherever_a_call_is_made(tmp_path: Path) -> None:
    """summary.json has paths as they were given to the call that wrote it."""
    task, jobs = find_task("hotel"), list[Job]()
    for arch in stages.ARCHITECTURES:
        directory = tmp_path / "finetuning" / "hotel" / arch
        directory.mkdir(parents=True)
        summary = {"best_seed": 1, "kept_model": f"runs/out/finetuning/hotel/{arch}/seed-1/model"}
        (directory / "summary.json").write_text(json.dumps(summary))
    plan = Plan(4, 1, 4, 4, 32, 1, {arch: Speed(1.0, 1.0, 1.0) for arch in stages.ARCHITECTURES})
    options, workers = ReproduceOptions(preset="nano", output_dir=tmp_path), SimpleNamespace(run=jobs.extend)
    run._robustness(run.Reproduction(options, {task: splits_of("好")}, plan, {}, workers))  # type: ignore[arg-type]
    expected = {arch: tmp_path / "finetuning" / "hotel" / arch / "seed-1" / "model" for arch in stages.ARCHITECTURES}
    assert [job.arguments[2] for job in jobs] == [expected]


def test_a_task_of_ones_own_that_goes_by_macro_f1_is_told_with_both_scores(tmp_path: Path) -> None:
    scores = {name: {"mean": mean, "deviation": None} for name, mean in (("accuracy", 0.9), ("macro_f1", 0.4))}
    sizes = {"train": 8, "dev": 8, "test": 8}
    summary = {"metric": "macro_f1", "sizes": sizes, "test": scores, "test_unseen": None, "notes": []}
    options = ReproduceOptions(preset="nano", output_dir=tmp_path)
    of_report = report._Report(options, Plan(4, 1, 4, 4, 32, 1, {}), {}, {}, ())
    rows = of_report._scores({"mine": {"glyphcrm": summary}})[0].splitlines()[2:]
    assert rows == ["| mine | accuracy | 8 | 90.00 | – |", "| mine | macro-f1 | 8 | 40.00 | – |"]


def test_test_texts_may_all_hold_a_held_out_character(tmp_path: Path) -> None:
    """Long texts do, and of few short ones none may; the report is written all the same."""
    scores = {"mean": 0.5, "deviation": None, "values": [0.5], "texts": 7}
    accuracy = {"glyphcrm": {"with": scores}, "bert": {"without": scores}}
    result = {"task": "hotel", "characters": GOOD, "accuracy": accuracy}
    (tmp_path / "held_out.json").write_text(json.dumps(result), encoding="utf-8")
    options = ReproduceOptions(preset="nano", output_dir=tmp_path)
    section = report._Report(options, Plan(4, 1, 4, 4, 32, 1, {}), {}, {}, ()).held_out()
    assert "| GlyphCRM | 50.00 (7 texts) | – |" in section[2] and "| BERT | – | 50.00 (7 texts) |" in section[2]


def test_the_frequency_of_characters_held_out_is_told_as_that_of_the_whole_text(tmp_path: Path) -> None:
    """The model was trained without any; what `extend_decoder` is given counts them."""
    guess = {"median_rank": 3, "median_rank_among_new": 2, "recall_at_10": 1.0, "recall_at_100": 1.0}
    groups = {"never predicted": {"characters": 1, "places": 1, "guesses": {"rows from pictures and frequency": guess}}}
    result = {"all": {"groups": groups}, "held_out": {"groups": groups}}
    (tmp_path / "open_prediction.json").write_text(json.dumps(result), encoding="utf-8")
    options = ReproduceOptions(preset="nano", output_dir=tmp_path)
    section = report._Report(options, Plan(4, 1, 4, 4, 32, 1, {}), {}, {}, ()).open_prediction()
    assert section[4].endswith("seen. Their frequency is that before the sentences with them were taken out.")
    assert "Their frequency" not in "".join(section[:4])


@pytest.mark.parametrize(("stage", "compare"), [("held_out", "compare_held_out"), ("other_fonts", "compare_fonts")])
def test_a_stage_takes_no_runs_of_other_settings_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, compare: str
) -> None:
    """They would be told under the name of what they are not: runs that are there are not done again."""
    begun: list[str] = []
    a, b, c = (tmp_path.with_name(f"{tmp_path.name}-{name}.ttf") for name in "abc")
    for font in (a, b, c):
        font.write_text(font.name)

    def stopped(options: ReproduceOptions, plan: Plan, task: Task, *_: Any) -> None:
        begun.append(task.name)
        (tmp_path / stage / "pretraining").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(run, compare, stopped)
    options = ReproduceOptions(preset="nano", output_dir=tmp_path, train_font=[str(a)], other_font=str(b))
    choices = {"glyphcrm": stages.Choice("study/glyphcrm", ())}

    def do(task: str, text: str = "好", **changed: Any) -> None:
        asked = replace(options, **changed)
        tasks, workers = {find_task(task): splits_of(text)}, Workers(tmp_path, 1)
        run.STAGES[stage](run.Reproduction(asked, tasks, Plan(10, 1, 6, 4, 64, 1, {}), choices, workers))

    do("demo_sentiment")
    do("demo_sentiment", other_font=str(shutil.copy(b, b.with_suffix(".otf"))))  # the same font in another place
    others: list[tuple[str, dict[str, Any]]] = [("toutiao", {}), ("demo_sentiment", {"text": "坏"})]
    if stage == "other_fonts":
        others += [("demo_sentiment", {"train_font": [str(c)]}), ("demo_sentiment", {"other_font": str(c)})]
    for task, changed in others:
        with pytest.raises(UserError, match=f"{stage} holds a run with other settings"):
            do(task, **changed)
    assert begun == ["demo_sentiment"] * 2


def splits_of(text: str) -> Splits:
    examples = (TextExample(text, "good"), TextExample("天", "bad"))
    return Splits(examples, examples, examples, ("bad", "good"))


def test_fine_tuning_on_other_examples_is_not_taken_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def work(self: Workers, jobs: Sequence[Job]) -> bool:
        asked.append(len([job for job in jobs if not job.made.exists()]))
        for job in jobs:
            write_atomically(job.made, b"{}") if job.made.parent.exists() else job.made.parent.mkdir(parents=True)
        return True

    monkeypatch.setattr(Workers, "run", work)
    plan = Plan(10, 1, 6, 4, 64, 1, {arch: Speed(1, 1, 1) for arch in stages.ARCHITECTURES})
    choices = {arch: stages.Choice(f"study/{arch}", ()) for arch in stages.ARCHITECTURES}

    def do(*texts: str) -> None:
        tasks = dict(zip(map(find_task, ("demo_sentiment", "toutiao")), map(splits_of, texts), strict=False))
        options = ReproduceOptions(preset="nano", output_dir=tmp_path)
        run.STAGES["finetuning"](run.Reproduction(options, tasks, plan, choices, Workers(tmp_path, 1)))

    do("好")
    do("好")
    do("好", "好")
    assert asked == [2, 2, 2]  # the first time they were cut short
    with pytest.raises(UserError, match=r"finetuning/toutiao holds a run with other settings \(data "):
        do("好", "坏")


def test_a_reproduction_of_other_text_is_refused(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the files have the same names."""

    def planned(options: ReproduceOptions, *_: Any) -> None:
        write_atomically(options.output_dir / report.PLAN_FILE, b"{}")
        raise UserError("planned")

    monkeypatch.setattr(run, "_plan", planned)
    text = tmp_path / "text.txt"
    words = ["--preset", "nano", "--text", str(text), "--tasks", str(task_file), "--output-dir", str(tmp_path / "out")]
    refused = "out holds a run with other settings .text "
    for content, end in (("天地。", "planned"), ("天地。", "planned"), ("玄黄。", refused)):
        text.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=end):
            run.reproduce(ReproduceOptions.parse(words))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_both_models_get_the_same_number_of_trials(preset: str) -> None:
    variants = trials.variants(preset)
    of_arch = {arch: [v for v in variants if v.arch == arch and not v.is_ablation] for arch in ("glyphcrm", "bert")}
    assert [v.arguments for v in of_arch["glyphcrm"]] == [v.arguments for v in of_arch["bert"]]
    assert len({variant.name for variant in variants}) == len(variants)
    assert len({(variant.arch, variant.arguments) for variant in variants}) == len(variants)


def test_both_models_are_trained_with_the_same_words(task_file: Path) -> None:
    options = ReproduceOptions(preset="nano", tasks=[str(task_file)])
    plan = Plan(10, 1, 6, 4, 64, 1, {})
    (task,) = stages.available_tasks(options)
    of_arch = []
    for arch in stages.ARCHITECTURES:
        directory = options.output_dir / arch
        jobs = [
            stages.pretraining(options, directory, arch, 10, ("--seed", "1")),
            stages.fine_tuning(options, plan, task, directory / "model", directory / "tuned"),
        ]
        of_arch.append([word.replace(arch, "MODEL") for job in jobs for word in (job.name, *job.arguments)])
    assert of_arch[0] == of_arch[1]


def test_what_a_preset_keeps_still_is_still_in_all_trainings(task_file: Path) -> None:
    """The plan goes by the speed of such steps."""
    for preset, kept in (("tiny", 10), ("nano", 0)):
        options = ReproduceOptions(preset=preset, tasks=[str(task_file)])
        (task,) = stages.available_tasks(options)
        place = options.output_dir / "run"
        job = stages.pretraining(options, place, "glyphcrm", 10, ())
        assert PretrainOptions.parse(job.arguments).recipe.steps_of_still_convolutions == kept
        words = stages.fine_tuning(options, Plan(10, 1, 6, 4, 64, 1, {}), task, place / "model", place).arguments
        assert FinetuneOptions.parse(words).still_convolutions == (kept > 0)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=20), st.integers(1, 8))
def test_work_side_by_side_takes_as_long_as_it_must(seconds: list[float], at_once: int) -> None:
    whole, longest = makespan(seconds, at_once), max(seconds)
    alone = sum(seconds)
    assert max(longest, alone / at_once) <= whole * (1 + 1e-9) and whole <= (alone / at_once + longest) * (1 + 1e-9)
    assert makespan(seconds, 1) == pytest.approx(alone) and makespan(seconds, len(seconds)) == longest


@settings(deadline=None, max_examples=30)
@given(
    hours=st.floats(0.2, 20),
    at_once=st.integers(1, 7),
    speeds=st.lists(st.tuples(st.floats(0.01, 5), st.floats(1e-6, 1e-3), st.floats(0, 5)), min_size=2, max_size=2),
    fonts=st.booleans(),
)
def test_a_plan_fits_into_its_time(
    task_file: Path, hours: float, at_once: int, speeds: list[tuple[float, float, float]], fonts: bool
) -> None:
    options = ReproduceOptions(preset="tiny", tasks=[str(task_file)], hours=hours)
    if fonts:
        options = replace(options, train_font=["a.ttf"], other_font="b.ttf")
    tasks = stages.available_tasks(options)
    studied = [variant.arch for variant in trials.variants("tiny")]
    speed = {arch: Speed(*of) for arch, of in zip(stages.ARCHITECTURES, speeds, strict=True)}
    plan = make_plan(options, speed, tasks, studied, at_once)
    time = hours * 3600
    seeds, steps = range(plan.pretraining_seeds), plan.pretraining_steps
    begun = makespan([plan.seconds(arch, plan.study_steps) for arch in studied], at_once)
    rest = [plan.seconds(arch, steps - (0 if seed else plan.study_steps)) for seed in seeds for arch in speed]
    assert steps == FEWEST_STEPS or begun + makespan(rest, at_once) <= 0.57 * time
    # Characters held out take two models on one task, fonts two GlyphCRMs.
    pairs = [["glyphcrm", "bert"], *[["glyphcrm"] * 2] * fonts]
    later = sum(makespan([plan.seconds(arch, plan.held_out_steps) for arch in pair], at_once) for pair in pairs)
    assert plan.held_out_steps == FEWEST_STEPS or later <= 0.1 * time
    ((task, splits),) = tasks.items()
    of_arch = {arch: plan.seconds_of_finetuning(arch, task, splits, options.seeds) for arch in speed}
    tuned = sum(makespan([of_arch[arch] for arch in pair], at_once) for pair in (speed, *pairs))
    assert plan.train_samples == FEWEST_SAMPLES or tuned <= 0.27 * time
    # Which of the two is the faster makes no difference, where both are trained.
    options = replace(options, train_font=[], other_font=None)
    other = make_plan(options, dict(zip(speed, reversed(speed.values()), strict=True)), tasks, ["glyphcrm", "bert"], 2)
    same = make_plan(options, speed, tasks, ["glyphcrm", "bert"], 2)
    assert {**asdict(other), "speed": None} == {**asdict(same), "speed": None}


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--hours", "0"], "--hours"),
        (["--data", "nowhere"], "nowhere"),
        (["--tasks", "no_such_task"], "no_such_task"),
        (["--train-font", "a.ttf"], "--other-font"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(
    arguments: list[str], culprit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments, "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and culprit in error and not (tmp_path / "out").exists()


def test_tasks_that_would_share_a_directory_or_a_row_are_refused(task_file: Path, tmp_path: Path) -> None:
    """Files go by the name of a task, rows of the report by its title, the paper's numbers by the name of the set."""
    shutil.copy(task_file.with_suffix(".tsv"), tmp_path)
    content = task_file.read_text(encoding="utf-8")

    def own(name: str, title: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'title = "{title}"\n{content}'.replace("reviews.tsv", str(tmp_path / "reviews.tsv")))
        return str(path)

    a, b, c = own("a/task.toml", "A"), own("b/task.toml", "B"), own("c.toml", "Hotel reviews")
    refused = {
        (a, b): f"{a} and {b} are both named 'task'; rename",
        (c, "hotel"): f"{c} and hotel both have the title 'Hotel reviews'; give one another",
        (own("hotel.toml", "D"),): "hotel.toml: 'hotel' is a task of the paper or the demo; rename",
    }
    for tasks, message in refused.items():
        with pytest.raises(UserError, match=re.escape(message)):
            stages.available_tasks(ReproduceOptions(tasks=list(tasks)))
    there = stages.available_tasks(ReproduceOptions(tasks=[a, c, a, "demo_sentiment", "demo_sentiment"]))
    assert [task.title for task in there] == ["A", "Hotel reviews", find_task("demo_sentiment").title]


def test_a_missing_opencc_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    substitutions._converter.cache_clear()
    assert main(["reproduce", "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "glyphcrm[reproduce]" in error and not (tmp_path / "out").exists()
