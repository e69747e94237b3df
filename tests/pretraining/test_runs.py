"""Whole runs of pretrain.py: real processes, killed for real."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, AutoTokenizer, BertForPreTraining

from glyphcrm.cli.entry import run_command
from glyphcrm.glyphs import fonts
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.modeling.hanglyph import GlyphVectors, HanGlyph
from glyphcrm.pretraining import corpus
from glyphcrm.pretraining.corpus import Text
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.pretraining.run import prepare
from glyphcrm.training.run_directory import check_whole, last_checkpoint, step_of
from tests.classic import TEXT
from tests.glyphs.font_files import font_file, part_of_default_font
from tests.pretraining.runs import REPOSITORY, command, environment, main, pretrain, start
from tests.robustness.processes import Run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def measures(run: Path, name: str) -> dict[int, float]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry[name] for entry in entries if "mlm_loss" in entry}


def losses(run: Path) -> dict[int, float]:
    return measures(run, "mlm_loss")


def wait_for(condition: str, run: Path, process: Run) -> None:
    """Wait until `condition`, a glob in the run's directory, matches; fail if the process ends before."""
    assert process.wait(lambda: any(run.glob(condition)), 120) and not process.ended, process.said()


@pytest.fixture(scope="module")
def finished(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, output = pretrain(command(text_file, run))
    assert code == 0, output
    (run / "output.txt").write_text(output)
    return run


def test_a_run_leaves_model_chart_log_and_answers(
    finished: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForPreTraining.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert model.config.num_glyphs == len(tokenizer)
    assert sorted(losses(finished)) == list(range(1, 13))
    with Image.open(finished / "loss.png") as chart:
        assert chart.format == "PNG" and chart.width > 800
    assert list((finished / "tensorboard").iterdir())
    output = (finished / "output.txt").read_text()
    assert "unigram entropy" in output and "▢" in output and "tokens/s" in output
    assert main(command(text_file, finished)) == 0
    again = capsys.readouterr()
    assert "step 1:" not in again.err and "unigram entropy" in again.out


def test_a_run_killed_at_any_moment_continues_bit_for_bit(finished: Path, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    arguments = command(text_file, run, "--save-every", "1", "--workers", "2")
    # While tokenising, while a checkpoint is being written, after one is complete.
    for moment in ("data/*", "checkpoint-3/model.safetensors", "checkpoint-7/complete.json"):
        process = start(arguments)
        wait_for(moment, run, process)
        process.kill()
        assert not (run / "model").exists()
    code, output = pretrain(arguments)
    assert code == 0 and "continuing from" in output, output
    assert same_weights(run, finished)
    assert losses(run) == losses(finished)
    seconds = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    assert seconds == sorted(seconds) and seconds[0] >= 0  # the clock of training goes on where it stopped


def test_a_run_killed_before_its_model_is_saved_only_saves_it(
    finished: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "unsaved")
    shutil.rmtree(run / "model")
    assert main(command(text_file, run)) == 0
    assert "unigram entropy" in capsys.readouterr().out
    assert same_weights(run, finished)


def test_a_run_can_start_from_a_finished_model(
    finished: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "further"
    assert main(command(text_file, run, "--init", str(finished / "model"), "--steps", "1")) == 0
    assert "unigram entropy" in capsys.readouterr().out

    def validation(directory: Path) -> list[float]:
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return [entry["eval_mlm_loss"] for entry in map(json.loads, lines) if "eval_mlm_loss" in entry]

    assert validation(run)[0] == pytest.approx(validation(finished)[-1], abs=1e-5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, as in the processes that the tests start: sums come out the same, bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_run_can_stop_early_on_its_schedule_and_go_on(finished: Path, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "part"
    for steps in (5, 5, 9):  # the second call has nothing to do
        assert main(command(text_file, run, "--stop-after", str(steps))) == 0
        assert max(losses(run)) == steps and not (run / "model").exists()
    assert main(command(text_file, run)) == 0
    assert same_weights(run, finished) and losses(run) == losses(finished)


TIED = ("--still-steps", "3", "--tied-decoder", "yes")


@pytest.mark.usefixtures("one_thread")
def test_a_wider_hanglyph_scaled_and_tied_goes_on_bit_for_bit(text_file: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--glyph-channels", "12", "--character-scaling", "0.5", *TIED, "--steps", "4", "--save-every", "2")
    for run, end in ((whole, "4"), (parts, "2"), (parts, "4")):
        assert main(command(text_file, run, *more, "--stop-after", end)) == 0
    assert same_weights(parts, whole) and losses(parts) == losses(whole)
    model = AutoModelForPreTraining.from_pretrained(whole / "model")
    assert model.glyphcrm.hanglyph.vector.in_features == 9 * model.config.glyph_channels == 9 * 12


def test_a_tied_decoder_begins_with_the_glyph_vectors_or_as_it_was(
    finished: Path, text_file: Path, tmp_path: Path
) -> None:
    """The first step of a warm-up moves nothing."""
    for name, more in (("new", ()), ("further", ("--init", str(finished / "model")))):
        assert main(command(text_file, tmp_path / name, *TIED, *more, "--stop-after", "1")) == 0
        model = AutoModelForPreTraining.from_pretrained(tmp_path / name / "checkpoint-1")
        base, rows = model.glyphcrm, model.mlm.decoder.weight.detach()
        vectors = base.hanglyph.all_vectors(torch.arange(len(rows)), base.glyph_table.bitmaps).vector
        as_it_was = weights(finished)["mlm.decoder.weight"]
        assert torch.allclose(rows, vectors, atol=1e-6) is (name == "new")
        assert torch.equal(rows, as_it_was) is (name == "further")


def test_a_run_in_several_fonts_continues_bit_for_bit_and_keeps_its_own_pictures(
    finished: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    font = font_file(tmp_path / "boxes.ttf", {char: (50 + 9 * i, 0, 900, 800) for i, char in enumerate(TEXT)})
    runs = tmp_path / "whole", tmp_path / "halves"
    for run in runs:
        words = command(text_file, run, "--train-font", str(font))
        assert run == runs[0] or main([*words, "--stop-after", "5"]) == 0
        assert main(words) == 0
    assert same_weights(*runs) and losses(runs[0]) == losses(runs[1])
    differing = {name for name, weight in weights(finished).items() if not torch.equal(weight, weights(runs[0])[name])}
    assert any("hanglyph" in name for name in differing) and not any("glyph_table" in name for name in differing)
    shutil.rmtree(runs[1] / "model")
    font_file(font, {char: (50, 9 * i, 900, 800) for i, char in enumerate(TEXT)})
    assert main(words) == 2
    assert "train_font_files" in capsys.readouterr().err


def test_a_run_of_a_model_of_other_sizes_is_refused(
    finished: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a preset has changed: its name alone says too little."""
    run = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["sizes"]["glyph_channels"] += 4
    (run / "run.json").write_text(json.dumps(record))
    assert main(command(text_file, run)) == 2
    error = capsys.readouterr().err
    assert "sizes" in error and error.count("\n") == 1


@pytest.mark.parametrize("hold_share", ["0", "0.3"])
def test_what_never_moves_is_told(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], hold_share: str
) -> None:
    held = ("--still-steps", "12", "--hold-steps", "12", "--hold-share", hold_share, "--stop-after", "1")
    assert main(command(text_file, tmp_path / "held", *held)) == 0
    said = capsys.readouterr().out
    assert "convolutions stand still in all 12 steps (--still-steps)" in said
    moves = "not at all" if hold_share == "0" else "at 0.3 of its rates"
    assert f"what makes vectors of characters moves {moves} in all steps: --hold-steps 12 of 12" in said
    if hold_share == "0":
        shorter = ("--still-steps", "11", "--hold-steps", "11", "--stop-after", "1")
        assert main(command(text_file, tmp_path / "shorter", *shorter)) == 0
        said = capsys.readouterr().out
        assert "convolutions stand still up to step 11" in said and "in all steps" not in said


@pytest.mark.usefixtures("one_thread")
def test_a_run_saves_by_the_clock_too(finished: Path, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "clock"
    often = ("--save-every", "100", "--save-minutes", "0")
    assert main(command(text_file, run, *often, "--stop-after", "5")) == 0
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}
    assert main(command(text_file, run)) == 0
    assert same_weights(run, finished) and losses(run) == losses(finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_and_the_same_command_continues(
    finished: Path, text_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The signal reaches the whole group, as from a terminal or a cluster: processes that load data, too."""
    run = tmp_path / "stopped"
    arguments = command(text_file, run, "--save-every", "100", "--workers", "2")
    process = start(arguments)
    wait_for("metrics.jsonl", run, process)
    assert process.wait(lambda: b'"mlm_loss"' in (run / "metrics.jsonl").read_bytes())  # of the first step
    process.signal(number)
    assert process.wait() and process.exit_codes == [130] and "the same command continues" in process.said()
    (checkpoint,) = run.glob("checkpoint-*")
    check_whole(checkpoint)
    assert len({path.stat().st_mode for path in checkpoint.iterdir()}) == 1
    assert pretrain(arguments)[0] == 0
    assert same_weights(run, finished)


def test_processes_and_accumulation_do_not_change_the_loss(text_file: Path, tmp_path: Path) -> None:
    """One process, one process in micro-batches, two torchrun processes, and two others in micro-batches.

    The same losses after 20 steps, and the same norm of the first gradient, HanGlyph's among them. Where torchrun is
    killed on the way, its processes end, though nobody would tell them of each other's end; what they leave continues.
    """
    more = ("--dropout", "0", "--steps", "200", "--save-every", "20", "--log-every", "1", "--micro-batch-size")
    runs = [command(text_file, tmp_path / name, *more, micro) for name, micro in zip("abcd", "4121", strict=True)]
    runs[2] += ["--save-every", "1"]
    kill_torchrun(runs[2], tmp_path / "c")
    for run, ranks in zip(runs, (1, 1, 2, 2), strict=True):
        code, output = pretrain([*run, "--stop-after", "20"], ranks)
        assert code == 0, output
    one, *others = ((losses(tmp_path / name)[20], measures(tmp_path / name, "grad_norm")[1]) for name in "abcd")
    for loss, first_norm in others:
        assert loss == pytest.approx(one[0], abs=1e-4)
        assert first_norm == pytest.approx(one[1], rel=1e-4)


def test_the_largest_seed_serves_several_processes(text_file: Path, tmp_path: Path) -> None:
    """Also where their number changes on the way."""
    largest = command(text_file, tmp_path / "run", "--seed", str(2**32 - 1), "--steps", "4", "--save-every", "2")
    for ranks, end in ((2, "2"), (1, "4")):
        code, output = pretrain([*largest, "--stop-after", end], ranks)
        assert code == 0, output
    assert (tmp_path / "run" / "model").exists()


def kill_torchrun(arguments: list[str], run: Path) -> None:
    """Start it, kill it with SIGKILL after three steps, and wait until its two processes have ended."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher = subprocess.Popen(
        [*torchrun, str(REPOSITORY / "pretrain.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    deadline = time.monotonic() + 120
    while not (run / "checkpoint-3" / "complete.json").exists():
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(children) == 2
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 60
    while any(running(int(child)) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (run / "model").exists()
    whole = [path for path in run.glob("checkpoint-*") if (path / "complete.json").exists()]
    assert whole
    assert last_checkpoint(run) == max(whole, key=step_of)


def running(process: int) -> bool:
    """Whether a process is there, and is no zombie that nobody has waited for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", ["tensorboard", "metrics.jsonl"])
def test_a_place_that_cannot_be_written_is_one_line_and_the_run_continues(
    name: str, finished: Path, text_file: Path, tmp_path: Path
) -> None:
    """As a read-only directory or a full disk; here a file or a directory stands in the way."""
    run = tmp_path / "blocked"
    prepare(PretrainOptions.parse(command(text_file, run)), first=True)
    place = run / name
    place.mkdir() if name == "metrics.jsonl" else place.write_text("in the way")
    code, output = pretrain(command(text_file, run))
    (error,) = (line for line in output.splitlines() if "error: " in line)
    assert code == 2 and name in error and "Traceback" not in output
    place.rmdir() if name == "metrics.jsonl" else place.unlink()
    assert pretrain(command(text_file, run))[0] == 0
    assert same_weights(run, finished)


def test_hanglyph_runs_once_a_step(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of micro-batches."""
    calls: list[int] = []
    forward = HanGlyph.forward

    def counted(self: HanGlyph, rows: torch.Tensor, bitmaps: torch.Tensor) -> GlyphVectors:
        if torch.is_grad_enabled():
            calls.append(len(rows))
        return forward(self, rows, bitmaps)

    monkeypatch.setattr(HanGlyph, "forward", counted)
    more = ("--steps", "3", "--batch-size", "6", "--micro-batch-size", "2", "--save-every", "3", "--workers", "0")
    assert main(command(text_file, tmp_path / "run", *more)) == 0
    assert len(calls) == 3


def test_a_bert_reads_the_same_batches_and_becomes_a_transformers_bert(text_file: Path, tmp_path: Path) -> None:
    samples = {}
    for arch in ("glyphcrm", "bert"):
        options = PretrainOptions.parse(command(text_file, tmp_path / arch, "--arch", arch, "--vocabulary-size", "40"))
        corpus, _ = prepare(options, first=True)
        samples[arch] = [corpus.train[i] for i in range(0, len(corpus.train), 7)]
    for ours, berts in zip(samples["glyphcrm"], samples["bert"], strict=True):
        assert all(np.array_equal(ours[name], berts[name]) for name in ours)
    assert main(command(text_file, tmp_path / "bert", "--arch", "bert", "--vocabulary-size", "40")) == 0
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "bert" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert" / "model")
    assert type(model) is BertForPreTraining and len(tokenizer) == model.config.vocab_size == 40
    assert torch.isfinite(model(**tokenizer("天地玄黄", "龘", return_tensors="pt")).prediction_logits).all()


def test_a_bert_ends_well_on_a_text_with_characters_that_it_does_not_know(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = open_font(part_of_default_font(tmp_path / "font.otf", TEXT))
    monkeypatch.setattr(fonts, "default_font", lambda: part)
    few = command(text_file, tmp_path / "run", "--arch", "bert", "--vocabulary-size", "12", "--steps", "4")
    few.remove("--no-input-only")  # the others have rows: a GlyphCRM would read them
    assert main(few) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_runs_over_the_same_text_share_what_is_made_of_it(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--data-dir", str(tmp_path / "text"))
    prepare(PretrainOptions.parse(command(text_file, tmp_path / "first", *shared)), first=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "text").rglob("*") if path.is_file()}
    assert main(command(text_file, tmp_path / "second", *shared, "--arch", "bert", "--seed", "1")) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not (tmp_path / "second" / "data").exists()
    capsys.readouterr()
    assert main(command(text_file, tmp_path / "third", *shared, "--vocabulary-size", "30")) == 2
    assert "vocabulary_size" in capsys.readouterr().err and not (tmp_path / "third").exists()


def test_excluded_characters_are_never_seen(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "excluded.txt").write_text("天\n地", encoding="utf-8")
    excluding = ("--exclude-characters", str(tmp_path / "excluded.txt"))
    corpus, model = prepare(PretrainOptions.parse(command(text_file, tmp_path / "run", *excluding)), first=True)
    vocabulary = corpus.tokenizer.tokens[: model.config.vocab_size]
    assert "玄" in vocabulary and not {"天", "地"} & set(vocabulary)
    assert not corpus.store.token_counts(len(corpus.tokenizer))[corpus.tokenizer.unk_token_id]
    whole, _ = prepare(PretrainOptions.parse(command(text_file, tmp_path / "whole")), first=True)
    assert 0 < corpus.store.token_count < whole.store.token_count


@pytest.mark.parametrize("learning_rate", ["1e30", "1e39"])
def test_a_loss_that_diverges_stops_the_run(
    text_file: Path, tmp_path: Path, learning_rate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "diverged"
    assert main(command(text_file, run, "--learning-rate", learning_rate, "--save-every", "1")) == 2
    error = capsys.readouterr().err
    assert "at step" in error and "lower --learning-rate" in error
    (checkpoint,) = sorted(run.glob("checkpoint-*"))[-1:]
    check_whole(checkpoint)
    assert all(p.isfinite().all() for p in load_file(checkpoint / "model.safetensors").values())
    assert not (run / "model").exists()


def test_a_full_disk_keeps_the_last_checkpoint(
    finished: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "full"
    arguments = command(text_file, run)
    process = start(arguments)
    wait_for("checkpoint-4/complete.json", run, process)
    process.kill()
    size = (run / "checkpoint-4" / "model.safetensors").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, limits[1]))
    try:
        assert main(arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "make room" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]
    assert pretrain(arguments)[0] == 0
    assert same_weights(run, finished)


def test_a_directory_with_another_run_is_refused(
    finished: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(text_file, finished, "--seed", "1")) == 2
    assert "seed 0 -> 1" in capsys.readouterr().err
    (tmp_path / "letter.txt").write_text("mine")
    assert main(command(text_file, tmp_path)) == 2
    assert "choose another --output-dir" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("words", [["pretrain"], ["tokenize"], ["tokenize", "--shard", "1/2"]])
@pytest.mark.parametrize(
    ("option", "message"), [("--font", "not a TrueType or OpenType font"), ("--vocabulary-size", "give 6 or more")]
)
def test_options_are_refused_before_a_long_text_is_read(
    words: list[str],
    option: str,
    message: str,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Text, "character_counts", lambda text: pytest.fail("counted"))
    other = shutil.copy(text_file, tmp_path)
    value = str(other) if option == "--font" else "5"
    data = ["--data", str(text_file), str(other), "--output-dir", str(tmp_path / "run")]
    assert run_command(words[0], [*words[1:], *data, option, value]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_drawn_for_too_few_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("天地玄黄。\n宇宙洪荒。\n\n日月盈昃。\n\n辰宿列张。\n", encoding="utf-8")
    monkeypatch.setattr(corpus, "frequent_characters", lambda *_: pytest.fail("drawn"))
    assert main(command(tmp_path / "text.txt", tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "no-such-file.txt"),
        (b"", [], "empty"),
        ("天地。\n玄黄。\n".encode() + b"\xff\xfe", [], "byte 20"),
        ("天地玄黄。宇宙洪荒。".encode(), [], "has 1 document; at least 4 are needed"),
        ("天\n\n地\n\n玄\n\n黄\n\n宇\n\n宙".encode(), [], "no two neighbouring sentences"),
        ("天地。玄黄。\n\n".encode() * 6, ["--max-length", "65"], "64 positions"),
        ("天地。玄黄。\n\n".encode() * 6, ["--micro-batch-size", "3"], "batch of 4 sequences"),
        ("天地。玄黄。\n\n".encode() * 6, ["--steps", "0"], "steps is 0"),
        ("天地。玄黄。\n\n".encode() * 6, ["--seed", "-1"], "--seed is -1"),
        ("天地。玄黄。\n\n".encode() * 6, ["--log-every", "3"], "not a multiple"),
        ("天地。玄黄。\n\n".encode() * 6, ["--font", "no-such-font.ttf"], "no-such-font.ttf"),
        ("天地。玄黄。\n\n".encode() * 6, ["--init", "no-such-model"], "no-such-model"),
        ("天地。玄黄。\n\n".encode() * 6, ["--text-column", "body"], "--text-column body: no text that is given has"),
        ("天地。玄黄。\n\n".encode() * 6, ["--train-font", "no-such-font.ttf"], "no-such-font.ttf"),
        ("天地。玄黄。\n\n".encode() * 6, ["--train-font", "x.ttf", "--arch", "bert"], "table of characters"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    content: bytes | None,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "no-such-file.txt"
    if content is not None:
        text = tmp_path / "text.txt"
        text.write_bytes(content)
    run = tmp_path / "run"
    assert main(command(text, run, *arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and message in lines[0]
    assert not run.exists()
