"""Whole runs of `glyphcrm finetune`: scores, files, interruptions, processes."""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from glyphcrm.checkpoint import load_atlas
from glyphcrm.cli.entry import run_command
from glyphcrm.finetuning.data import sample
from glyphcrm.finetuning.metrics import score
from glyphcrm.finetuning.models import load_finetuned
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.finetuning.prediction import predict
from glyphcrm.finetuning.results import SeedResult, load_predictions
from glyphcrm.finetuning.run import finetune
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.tasks import Kind, find_task, load_splits
from tests.classic import TEXT
from tests.finetuning.conftest import CHARACTERS
from tests.glyphs.font_files import SQUARE, font_file
from tests.robustness.processes import Run


def main(arguments: Sequence[str]) -> int:
    """Run `glyphcrm finetune` in this process."""
    return run_command("finetune", arguments)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the processes that tests start, so that sums come in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def result(run: Path, seed: int = 0) -> dict[str, object]:
    """A seed's result without what the clock decides."""
    found: dict[str, object] = json.loads((run / f"seed-{seed}" / "result.json").read_text())
    del found["seconds"]
    return found


def predictions(run: Path, seed: int = 0) -> list[dict[str, object]]:
    return load_predictions(run / f"seed-{seed}" / "predictions.jsonl")


def content(run: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in run.rglob("*.json*")
        if path.name != "summary.json"
    }


def command(task: Path, model: Path, run: Path, *more: str) -> list[str]:
    return [
        "--task",
        str(task),
        "--model",
        str(model),
        "--output-dir",
        str(run),
        "--seeds",
        "1",
        "--patience",
        "9",
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(sentiment: Path, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of a GlyphCRM on the texts."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert main(command(sentiment, directories["glyphcrm"], run, "--keep-model", "best")) == 0
    return run


@pytest.fixture(scope="module")
def undisturbed_bert(sentiment: Path, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a BERT, which is quicker."""
    run = tmp_path_factory.mktemp("runs") / "bert"
    assert main(command(sentiment, directories["bert"], run, "--keep-model", "best")) == 0
    return run


def same_end(run: Path, other: Path) -> bool:
    """Whether two runs of one seed have the same weights, bit for bit, predictions and scores."""
    ours, theirs = (load_file(path / "seed-0" / "model" / "model.safetensors") for path in (run, other))
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
        and result(run) == result(other)
        and predictions(run) == predictions(other)
        and not list(run.glob("seed-*/checkpoint-*"))
    )


def test_a_run_learns_and_leaves_scores_predictions_chart_and_model(
    sentiment: Path,
    directories: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    # Dropout keeps about every third seed of so small a model at chance.
    one = command(sentiment, directories["glyphcrm"], run, "--dropout", "0", "--keep-model", "best")
    assert main(one) == 0
    before = content(run)
    two = [*one, "--seeds", "2"]
    assert main(two) == 0  # trains the second seed alone
    assert all(content(run).get(path) == was for path, was in before.items() if "model" not in path.parts)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["sizes"] == {"train": 96, "dev": 24, "test": 24}
    values = [result(run, seed)["test"]["accuracy"] for seed in (0, 1)]  # type: ignore[index]
    assert summary["test"]["accuracy"]["values"] == values and min(values) > 0.7
    assert summary["test"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert summary["test"]["accuracy"]["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    rows = predictions(run)
    splits = load_splits(find_task(str(sentiment)), None)
    assert [(row["text"], row["gold"]) for row in rows] == [(e.text, e.label) for e in splits.test]  # type: ignore[union-attr]
    guesses = [str(row["predicted"]) for row in rows]
    assert result(run)["test"] == score(Kind.SENTENCE, splits.test, guesses)
    with Image.open(run / "chart.png") as chart:
        assert chart.format == "PNG"
    assert not list(run.glob("seed-*/checkpoint-*")) and len(list(run.glob("seed-*/tensorboard/*"))) == 2
    # The kept model, loaded anew, says what the run said.
    best = summary["best_seed"]
    assert [path.parent.name for path in run.glob("seed-*/model")] == [f"seed-{best}"]
    model, tokenizer = load_finetuned(Path(summary["kept_model"]))
    again = predict(model, tokenizer, splits.test, Kind.SENTENCE, splits.labels, 24)
    assert again == [row["predicted"] for row in predictions(run, best)]
    # Repeating the command reports and trains nothing.
    before = content(run)
    capsys.readouterr()
    assert main(two) == 0
    output = capsys.readouterr()
    assert "accuracy" in output.out and "±" in output.out and "step" not in output.err
    told = output.out.splitlines()[-1]
    assert told == f"use it: glyphcrm predict TEXT --model {shlex.quote(summary['kept_model'])}"
    assert run_command("predict", [*shlex.split(told)[5:], splits.test[0].text]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == predictions(run, best)[0]["predicted"]
    assert content(run) == before


@pytest.mark.parametrize(("name", "truncation"), [("bert", "head"), ("glyphcrm", "head+tail")])
def test_predict_reads_a_long_text_as_training_did(
    name: str,
    truncation: str,
    sentiment: Path,
    directories: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A text's beginning or, with its tail, its end decides; what is not read speaks for the other label."""
    task, run = tmp_path / "task" / "sentiment.toml", tmp_path / "run"
    shutil.copytree(sentiment.parent, task.parent)
    unread = {"有": CHARACTERS[26:], "无": CHARACTERS[:26]}
    for file in task.parent.glob("*.tsv"):
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        if truncation == "head":
            texts = [f"{text}{unread[label]}" for text, label in rows]
        else:
            texts = [f"{text[:3]}{unread[label]}{text}" for text, label in rows]
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, (_, label) in zip(texts, rows, strict=True))]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ("--max-length", "12", "--truncation", truncation, "--keep-model", "best", "--dropout", "0")
    assert main(command(task, directories[name], run, *options)) == 0
    assert result(run)["test"]["accuracy"] > 0.7  # type: ignore[index]
    texts_file = tmp_path / "texts"
    texts_file.write_text("".join(f"{row['text']}\n" for row in predictions(run)), encoding="utf-8")
    kept = run / "seed-0" / "model"
    assert run_command("convert-half", ["--model", str(kept), "--out", str(tmp_path / "half")]) == 0
    for model in (kept, tmp_path / "half"):
        capsys.readouterr()
        assert run_command("predict", ["--json", "--model", str(model), "--file", str(texts_file)]) == 0
        output = capsys.readouterr()
        labels = [json.loads(line)["label"] for line in output.out.splitlines()]
        assert labels == [row["predicted"] for row in predictions(run)]
        read = "the first" if truncation == "head" else "at its beginning and its end"
        assert output.err.splitlines()[0] == f"{texts_file}:1: too long: {read} 12 tokens were read"


@pytest.mark.parametrize("name", ["glyphcrm", "bert", "twin"])
def test_every_model_takes_the_same_path_on_tags(
    name: str, names: Path, directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = finetune(FinetuneOptions(str(names), str(directories[name]), output_dir=str(tmp_path / "run"), seeds=1))
    assert set(summary.test) == {"precision", "recall", "f1"}
    assert any("1 of 12 test sentences have more than 62 tokens" in note for note in summary.notes)
    rows = predictions(tmp_path / "run")
    splits = load_splits(find_task(str(names)), None)
    assert [len(row["predicted"]) for row in rows] == [len(e.characters) for e in splits.test]  # type: ignore[arg-type, union-attr]
    assert (tmp_path / "run" / "chart.png").exists()
    assert "12 test sentences" in capsys.readouterr().out


def test_a_run_stopped_and_killed_ends_bit_for_bit_the_same(
    undisturbed: Path, sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "disturbed"
    arguments = command(sentiment, directories["glyphcrm"], run, "--keep-model", "best")
    # Ctrl-C in the middle of an epoch, then kill -9 while a checkpoint is being written.
    for moment, number in (
        ("checkpoint-12/complete.json", signal.SIGINT),
        ("checkpoint-36/model.safetensors", signal.SIGKILL),
    ):
        process = Run(["finetune", *arguments], tmp_path / "log")
        assert process.wait(lambda at=moment: any((run / "seed-0").glob(at)), 120) and not process.ended, process.said()
        if number == signal.SIGINT:  # once a further step is logged: a run that has just saved stops where it is
            (log,) = (run / "seed-0" / "tensorboard").iterdir()
            size = log.stat().st_size
            assert process.wait(lambda log=log, size=size: log.stat().st_size > size, 120) and not process.ended
        process.signal(number)
        assert process.wait() and not (run / "seed-0" / "result.json").exists()
        if number == signal.SIGINT:
            assert process.exit_codes == [130] and "the same command continues" in process.said()
            assert any(int(path.name.split("-")[1]) % 12 for path in run.glob("seed-0/checkpoint-*"))
    assert main(arguments) == 0
    assert same_end(run, undisturbed)


def test_a_run_that_could_not_write_its_result_trains_no_further_step(
    undisturbed_bert: Path,
    sentiment: Path,
    directories: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "unwritten"
    arguments = command(sentiment, directories["bert"], run, "--keep-model", "best")

    def full(self: SeedResult, directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SeedResult, "save", full)
        assert main(arguments) == 2
    assert "make room" in capsys.readouterr().err.splitlines()[-1]
    assert main(arguments) == 0
    assert "step/s" not in capsys.readouterr().err
    assert same_end(run, undisturbed_bert)


def test_a_chart_that_cannot_be_written_leaves_the_scores(
    undisturbed_bert: Path, sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed_bert, run)
    for name in ("summary.json", "chart.png"):
        (run / name).unlink()
    (run / "chart.png").mkdir()
    assert main(command(sentiment, directories["bert"], run, "--keep-model", "best")) == 2
    assert json.loads((run / "summary.json").read_text())["test"]["accuracy"]["mean"] > 0


def test_two_processes_and_micro_batches_score_as_one(
    sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    more = ("--dropout", "0", "--epochs", "2", "--learning-rate", "0.003")
    two = command(sentiment, directories["bert"], tmp_path / "two", *more)
    process = Run(["finetune", *two], tmp_path / "log", ranks=2)
    for name, micro in (("one", "8"), ("micro", "2")):
        arguments = command(sentiment, directories["bert"], tmp_path / name, *more, "--micro-batch-size", micro)
        assert main(arguments) == 0
    assert process.wait() and process.exit_codes == [0, 0], process.said()
    assert process.said().count("macro_f1") == 1  # one process speaks
    one = result(tmp_path / "one")
    for name in ("micro", "two"):
        other = result(tmp_path / name)
        assert (other["dev"], other["test"], other["best_step"]) == (one["dev"], one["test"], one["best_step"])
        assert predictions(tmp_path / name) == predictions(tmp_path / "one")


def test_the_test_set_decides_nothing_and_texts_seen_in_train_are_scored_apart(
    undisturbed_bert: Path, sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(sentiment.parent, tmp_path / "other"))
    train = (other / "train.tsv").read_text().splitlines()
    # Four training texts, two with the wrong label, and six new ones.
    wrong = [row.split("\t")[0] + "\t" + {"有": "无", "无": "有"}[row.split("\t")[1]] for row in train[1:3]]
    (other / "test.tsv").write_text(
        "\n".join([*train[:1], *train[3:5], *wrong, *(other / "test.tsv").read_text().splitlines()[1:7]])
    )
    run = tmp_path / "run"
    summary = finetune(
        FinetuneOptions(
            str(other / "sentiment.toml"),
            str(directories["bert"]),
            output_dir=str(run),
            seeds=1,
            patience=9,
            keep_model="best",
        )
    )
    ours, theirs = result(run), result(undisturbed_bert)
    assert [ours[key] for key in ("dev", "best_step", "steps")] == [
        theirs[key] for key in ("dev", "best_step", "steps")
    ]
    assert summary.test_unseen is not None and summary.sizes["test"] == 10
    rows = predictions(run)
    right = [row["gold"] == row["predicted"] for row in rows]
    assert summary.test["accuracy"].mean == pytest.approx(sum(right) / 10)
    assert summary.test_unseen["accuracy"].mean == pytest.approx(sum(right[4:]) / 6)


def test_it_stops_when_dev_does_not_improve_and_keeps_the_best_step(
    sentiment: Path, directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "patient"
    more = ("--learning-rate", "0", "--epochs", "9", "--patience", "3", "--evaluations-per-epoch", "2")

    def crash(*arguments: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("glyphcrm.finetuning.seed_run.save_predictions", crash)
        with pytest.raises(ZeroDivisionError):
            main(command(sentiment, directories["bert"], run, *more))
    # Patience was at its end: continuing must not train further.
    assert main(command(sentiment, directories["bert"], run, *more)) == 0
    found = result(run)
    # A learning rate of 0 changes nothing: the first of four evaluations, 6 steps apart, stays the best.
    assert (found["best_step"], found["steps"]) == (6, 24)


def test_samples_keep_the_shares_of_the_labels(sentiment: Path) -> None:
    train = load_splits(find_task(str(sentiment)), None).train
    some = sample(train, 11)
    assert len(some) == 11 and some == sample(train, 11)
    assert sorted(sum(e.label == label for e in some) for label in ("有", "无")) == [5, 6]  # type: ignore[union-attr]
    assert [train.index(e) for e in some] == sorted(train.index(e) for e in some)
    lopsided = [e for e in train if e.label == "无"] + [e for e in train if e.label == "有"][:1]  # type: ignore[union-attr]
    assert {e.label for e in sample(lopsided, 2)} == {"有", "无"}  # type: ignore[union-attr]
    assert sample(train, 1000) == train


def test_the_test_set_is_scored_in_other_fonts_too_and_training_reads_others(
    undisturbed: Path, sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    """The scores are those of the kept model, which has its own pictures, when it is given others."""
    files = [tmp_path / f"{name}.ttf" for name in ("Left", "Low")]
    font_file(files[0], {char: (50 + 9 * i, 0, 900, 800) for i, char in enumerate(TEXT)}, family="Left")
    font_file(files[1], {char: (50, 9 * i, 900, 800) for i, char in enumerate(TEXT[1:])}, family="Low")
    runs = tmp_path / "tested", tmp_path / "trained"
    fonts = (("--test-font", *map(str, files)), ("--train-font", *map(str, files)))
    for run, more in zip(runs, fonts, strict=True):
        assert main(command(sentiment, directories["glyphcrm"], run, "--keep-model", "best", *more)) == 0
    assert predictions(runs[0]) == predictions(undisturbed)
    own, *others = (load_file(run / "seed-0" / "model" / "model.safetensors") for run in (undisturbed, *runs))
    assert all(torch.equal(own[name], others[0][name]) for name in own)
    assert not torch.equal(own["glyphcrm.hanglyph.stem.weight"], others[1]["glyphcrm.hanglyph.stem.weight"])
    assert torch.equal(own["glyphcrm.glyph_table.bitmaps"], others[1]["glyphcrm.glyph_table.bitmaps"])
    splits = load_splits(find_task(str(sentiment)), None)
    model, tokenizer = load_finetuned(runs[0] / "seed-0" / "model")
    atlas = load_atlas(runs[0] / "seed-0" / "model")
    expected = {}
    for font in map(open_font, files):
        model.set_atlas(atlas.redrawn(font))  # type: ignore[operator]
        guesses = predict(model, tokenizer, splits.test, Kind.SENTENCE, splits.labels, 24)
        expected[font.name] = score(Kind.SENTENCE, splits.test, guesses)
    assert result(runs[0])["test_fonts"] == expected and result(runs[1])["test_fonts"] == {}
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert summary["test_fonts"]["Low Regular 1.500"]["accuracy"]["values"] == [
        expected["Low Regular 1.500"]["accuracy"]
    ]


def test_convolutions_can_stand_still(
    undisturbed: Path, sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    """All else learns, at the rates of a run in which they move."""
    run = tmp_path / "still"
    assert main(command(sentiment, directories["glyphcrm"], run, "--keep-model", "best", "--still-convolutions")) == 0
    start = load_file(directories["glyphcrm"] / "model.safetensors")
    moving, still = (load_file(path / "seed-0" / "model" / "model.safetensors") for path in (undisturbed, run))
    moved = {name for name in start.keys() & still.keys() if not torch.equal(start[name], still[name])}
    ever = {name for name in start.keys() & moving.keys() if not torch.equal(start[name], moving[name])}
    convolutions = {name for name in ever if re.search(r"hanglyph\.(stem|block|expand)", name)}
    assert convolutions and moved == ever - convolutions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "no-such-task"], "no task is named"),
        (["--test-font", "no-such-font.ttf"], "no-such-font.ttf"),
        (["--model", "no-such-model"], "no config.json"),
        (["--max-length", "65"], "64 positions"),
        (["--max-length", "7"], "--max-length is 7"),
        (["--micro-batch-size", "3"], "batch of 8 sequences"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--dropout", "1"], "--dropout is 1"),
        (["--train-samples", "0"], "--train-samples is 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str],
    message: str,
    sentiment: Path,
    directories: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(sentiment, directories["bert"], tmp_path / "run", *arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_fonts_are_for_models_that_read_pictures(
    sentiment: Path, directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And draw some of the model's characters, each under its own name; what is refused leaves nothing."""
    font, other = (str(font_file(tmp_path / f"{char}.ttf", {char: SQUARE})) for char in "天〇")
    for arch, fonts, message in (
        ("bert", ("--train-font", font), "reads no pictures"),
        ("glyphcrm", ("--train-font", other), "none of the characters"),
        ("glyphcrm", ("--test-font", font, other), "called Made Up Regular 1.500"),
    ):
        assert main(command(sentiment, directories[arch], tmp_path / "run", *fonts)) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(error) == 1 and message in error[0] and not (tmp_path / "run").exists()


def test_head_and_tail_is_for_single_texts(names: Path, directories: dict[str, Path]) -> None:
    assert main(["--task", str(names), "--model", str(directories["bert"]), "--truncation", "head+tail"]) == 2


@pytest.mark.parametrize("change", ["setting", "model", "data"])
def test_a_directory_with_another_run_is_refused(
    change: str,
    undisturbed: Path,
    sentiment: Path,
    directories: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, more, task = directories["glyphcrm"], ["--keep-model", "best"], sentiment
    if change == "setting":
        more = [*more, "--learning-rate", "0.1"]
    elif change == "model":
        model = directories["twin"]
    else:
        task = Path(shutil.copytree(sentiment.parent, tmp_path / "other")) / sentiment.name
        with open(task.parent / "dev.tsv", "a", encoding="utf-8") as file:
            file.write("天\t有\n")
    before = content(undisturbed)
    assert main(command(task, model, undisturbed, *more)) == 2
    assert "other settings" in capsys.readouterr().err
    assert content(undisturbed) == before


@pytest.mark.parametrize("learning_rate", ["1e30", "1e39"])
def test_a_loss_that_diverges_is_one_line(
    learning_rate: str,
    sentiment: Path,
    directories: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(sentiment, directories["bert"], tmp_path / "run", "--learning-rate", learning_rate)) == 2
    assert "lower --learning-rate" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("run/seed-0/result.json"))
