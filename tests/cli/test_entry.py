"""The `glyphcrm` command: its table of commands, how it may be started, and what it imports."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import glyphcrm
from glyphcrm.cli import entry
from glyphcrm.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SHIPPED = str(REPOSITORY / "checkpoints" / "glyphcrm-tiny")


def exit_code_and_output(*words: str) -> tuple[object, str]:
    """Run `glyphcrm` to its `SystemExit`."""
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as end:
        entry.main(list(words))
    return end.value.code, output.getvalue()


def test_help_lists_every_command() -> None:
    code, output = exit_code_and_output("--help")
    assert code == 0
    for name, (_, help) in entry.COMMANDS.items():
        assert f" {name} " in output.replace("\n", " \n") and help.split()[0] in output


def test_version() -> None:
    assert exit_code_and_output("--version") == (0, f"glyphcrm {glyphcrm.__version__}\n")
    assert glyphcrm.__version__ == version("glyphcrm")


def test_a_checkout_that_is_not_installed_works(tmp_path: Path) -> None:
    """Its folder is found, its name is not: as on a machine where nothing can be installed."""
    for name in ("glyphcrm", "kernels"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    program = (
        "import importlib.metadata as m, runpy, sys\nfind = m.Distribution.from_name\n"
        "def found(name):\n    if name == 'glyphcrm': raise m.PackageNotFoundError(name)\n    return find(name)\n"
        "m.Distribution.from_name = found\nsys.argv = ['glyphcrm', '--version']\n"
        "runpy.run_module('glyphcrm', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "glyphcrm not installed\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "required: COMMAND"),
        (["frobnicate"], "'frobnicate'"),
        (["--preset", "nano", "pretrain"], "nano"),
        (["predict", "--model", "m", "--top", "0", "北▢"], "--top: 0; give"),
        (["atlas", "nearest", "--model", "m", "--top", "many", "请"], "--top: many; give"),
        (["atlas", "nearest", "--modle", "m", "请"], "no option is named --modle; is --model meant?"),
        (["predict", "北▢", "--modle=m"], "no option is named --modle; is --model meant?"),
        (["finetune", "--tsak", "hotel"], "no option is named --tsak; is --task meant?"),
        (
            ["atlas", "build", "--text", "t", "--out", "o", "--vocabulary-size", "5"],
            "5; give a whole number, 6 or more",
        ),
        (
            ["convert-bert", "--bert", "b", "--out", "o", "--seed", "-1"],
            "-1; give a whole number, from 0 to 4294967295",
        ),
        (["pretrain", "--learning-rate", "1e"], "argument --learning-rate: invalid float value: '1e'"),
        (["predict", "-5", "-- 北▢", "--", "--modle"], "required: --model"),
    ],
)
def test_what_is_no_command_is_refused(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        entry.main(words)
    assert end.value.code == 2 and complaint in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_the_shims_have_the_options_of_their_commands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, ours = exit_code_and_output(name, "--help")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPOSITORY / f"{name}.py"), run_name="__main__")
    assert code == end.value.code == 0
    theirs = output.getvalue()
    assert theirs.startswith(f"usage: {name}.py") and ours.startswith(f"usage: glyphcrm {name}")
    assert ours.split("options:")[1] == theirs.split("options:")[1]


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_ctrl_c_while_a_shim_imports_leaves_no_traceback(name: str) -> None:
    program = (
        "import builtins, runpy, sys\nimport_ = builtins.__import__\n"
        "def interrupted(name, *more):\n"
        "    if name.startswith('glyphcrm'): raise KeyboardInterrupt\n"
        "    return import_(name, *more)\n"
        "builtins.__import__ = interrupted\nrunpy.run_path(sys.argv[1], run_name='__main__')"
    )
    shim = str(REPOSITORY / f"{name}.py")
    done = subprocess.run([sys.executable, "-c", program, shim], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_the_package_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["glyphcrm", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("glyphcrm", run_name="__main__")
    assert end.value.code == 0


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("text.txt: is empty"), 2, "error: text.txt: is empty\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (KeyboardInterrupt("stopped, saved"), 130, "\nstopped, saved\n"),
    ],
)
def test_errors_of_users_are_one_line(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def parse(words: object, prog: object) -> object:
        raise error

    monkeypatch.setattr(importlib.import_module("glyphcrm.cli.training"), "parse_pretrain", parse)
    assert entry.main(["pretrain"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "ascii:strict", "utf-8"])
@pytest.mark.parametrize(
    ("start", "program"), [(runpy.run_module, ["glyphcrm", "finetune"]), (runpy.run_path, ["finetune.py"])]
)
def test_a_terminal_that_lacks_characters_ends_no_run(
    start: Callable[..., object], program: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Printed, and in the line of an error; a name with a byte that is no UTF-8 among them."""
    text = "▢ 龘 \U00020bb7 caf\xe9 \udcff"

    def fail(words: object, prog: object) -> object:
        raise UserError(text)

    training = importlib.import_module("glyphcrm.cli.training")
    monkeypatch.chdir(REPOSITORY)
    for parse, code in ((lambda words, prog: lambda: print(text) or 0, 0), (fail, 2)):
        name, _, errors = encoding.partition(":")
        out, error = (io.TextIOWrapper(io.BytesIO(), name, errors or None) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", error)
        monkeypatch.setattr(training, "parse_finetune", parse)
        monkeypatch.setattr(sys, "argv", program)
        with pytest.raises(SystemExit) as end:
            start(program[0], run_name="__main__")
        out.flush()
        error.flush()
        printed, complaint = out.buffer.getvalue(), error.buffer.getvalue()  # type: ignore[attr-defined]
        assert (end.value.code, printed.count(b"\n"), complaint.count(b"\n")) == (code, code == 0, code == 2)
        assert b"caf" in printed + complaint and complaint.startswith(b"error: " if code else b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    program = (
        "import sys\nfrom glyphcrm.cli import entry, training\n"
        "training.parse_pretrain = lambda words, prog: lambda: print('x' * 100) or 0\n"
        "sys.exit(entry.main(['pretrain']))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_run(closed: str, tmp_path: Path) -> None:
    """Nor does a file that the run opens take their place, and get what is printed."""
    program = (
        "import sys\nfrom glyphcrm.cli import entry, training\n"
        "def run():\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        print('out'), print('err', file=sys.stderr), sys.stdin.read(), file.write(str(file.fileno() > 2))\n"
        "    return 0\n"
        "training.parse_pretrain = lambda words, prog: run\nsys.exit(entry.main(['pretrain']))"
    )
    words = ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, program, str(tmp_path / "file")]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "True"


def test_help_tells_defaults_and_one_name_of_each_option() -> None:
    for name in ("pretrain", "finetune", "reproduce", "tokenize"):
        _, output = exit_code_and_output(name, "--help")
        assert "(default: None)" not in output and "(default: " in output
        assert "--output-dir OUTPUT_DIR\n" in output and not re.search(r"--[a-z]+_", output)
        assert not re.search(r"\[[A-Z_]+\]|\['|True|False", output.replace("[RECIPE.yaml]", "")), name
        usual = {"tokenize": "18612", "reproduce": "8"}.get(name, "tensorboard")
        assert f"(default: {usual})" in " ".join(output.split())
    assert re.search(r"--no-input-only\s+the opposite of --input-only\n", output)
    reproduce, pretrain = (
        " ".join(exit_code_and_output(name, "--help")[1].split()) for name in ("reproduce", "pretrain")
    )
    assert "--without WITHOUT [WITHOUT ...] stages to leave out: study, finetuning, held_out" in reproduce
    assert "masking and dropout (default: 0)" in pretrain and "freed memory for the next step" in pretrain


def test_each_help_says_what_the_command_does() -> None:
    of_atlas = (("atlas", name) for name in ("build", "show", "add", "encode", "nearest"))
    for words in (*((name,) for name in entry.COMMANDS if name != "atlas"), *of_atlas):
        usage, described, *_ = exit_code_and_output(*words, "--help")[1].split("\n\n")
        assert usage.startswith("usage: ") and described.endswith("."), words


def test_help_imports_no_command() -> None:
    """Nor torch, nor transformers, which take seconds."""
    program = (
        "import sys\nfrom glyphcrm.cli.entry import main\ntry:\n    main(['--help'])\n"
        "finally:\n    print(*(name for name in sys.modules if name.startswith(('glyphcrm', 'torch', 'transformers'))))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    imported = set(result.stdout.splitlines()[-1].split())
    inner = ("registration", "cli", "cli.entry", "errors", "version")
    assert imported == {"glyphcrm", *(f"glyphcrm.{name}" for name in inner)}


def test_a_wrong_directory_of_a_model_is_told_before_anything_slow_is_imported(tmp_path: Path) -> None:
    nowhere, new = str(tmp_path / "nowhere"), str(tmp_path / "new")
    commands = [
        ["predict", "text", "--model", nowhere],
        ["web", "--model", nowhere],
        ["export", "--model", nowhere, "--onnx", new],
        ["convert-bert", "--bert", nowhere, "--out", new],
        ["convert-half", "--model", nowhere, "--out", new],
        *(["atlas", name, "--model", nowhere, *more] for name, *more in (["encode"], ["nearest", "请"])),
        ["atlas", "add", "请", "--model", nowhere, "--out", new],
        # These need transformers to read their options, but not torch.
        ["finetune", "--task", "demo_ner", "--model", nowhere],
        ["pretrain", "--init", nowhere],
    ]
    program = (
        "import json, sys\nfrom glyphcrm.cli.entry import main\nfor words in json.loads(sys.argv[1]):\n"
        "    print(main(words), 'transformers' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stdout.splitlines() == ["2 False False"] * 8 + ["2 True False"] * 2, done.stderr
    complaints = done.stderr.splitlines()
    assert len(complaints) == len(commands)
    assert all(line.startswith(f"error: {nowhere}: no config.json there") for line in complaints)


def test_mistakes_are_told_before_anything_slow_is_imported(tmp_path: Path) -> None:
    """Nothing is left behind. A file in the place of a folder stands for one in which nothing can be written."""
    bert, text, absent = tmp_path / "bert", tmp_path / "text.txt", str(tmp_path / "absent")
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert"}')
    text.write_text("天地玄黄", encoding="utf-8")
    ours, theirs, inside = ["--model", SHIPPED], ["--bert", str(bert)], str(text / "inside")
    release = ["--weights", absent, "--bitmaps", absent, "--out", "x"]
    unwritten = "inside: cannot be written: Not a directory"
    commands: list[tuple[list[str], str]] = [
        (["atlas", "add", *ours, "--out", absent], "no character to add was given"),
        (["atlas", "add", "龘", *ours, "--out", absent], "reads 龘 U+9F98 already"),
        (["atlas", "add", "\ue123", *ours, "--out", absent], "no font has"),
        (["atlas", "add", "\ue123", *ours, "--out", absent, "--counts-from", str(text)], "--counts-from is for"),
        (["atlas", "add", "\ue123", *ours, "--out", inside], unwritten),
        (["atlas", "nearest", " ", *ours], "has no characters"),
        (["atlas", "nearest", "\ue123", *ours], "has no picture of"),
        (["atlas", "build", "--text", str(text), "--out", str(bert), "--force"], "bert: is a directory"),
        (["atlas", "build", "--text", str(text), "--out", absent, "--weight", "700"], "--weight is of the fonts"),
        (["atlas", "build", "--characters", str(text), "--out", absent, "--vocabulary-size", "9"], "is for --text"),
        (["export", *ours, "--onnx", str(bert)], "is a directory"),
        (["export", *ours, "--onnx", str(text)], "ends in .onnx"),
        (["convert-half", *ours, "--out", inside], unwritten),
        (["convert-bert", *theirs, "--out", inside], unwritten),
        (["convert-bert", *theirs, "--out", absent, "--font", absent], "no such file"),
        (["convert-release", *release, "--vocab", absent], "No such file"),
        (["convert-release", *release, "--vocab", f"{SHIPPED}/vocab.txt"], "absent: no such file"),
        (["pretrain", "--preset", "nano", "--max-length", "65"], "the model has 64 positions"),
        (["pretrain", "--init", SHIPPED, "--max-length", "513"], "the model has 512 positions"),
        (["pretrain", "--init", SHIPPED, "--font", absent], "--font draws a new atlas"),
        (["pretrain", "--batch-size", "9"], "or another --micro-batch-size"),
        (["pretrain", "--output-dir", inside], unwritten),
        (["pretrain", "--steps", "9" * 20], "give 1 to 100000000000"),
        (["pretrain", "--seed", "4294967296"], "give 0 to 4294967295"),
        (["pretrain", "--vocabulary-size", "9" * 20], "give 6 to 100000000000"),
        (["finetune", "--task", "demo_ner", *ours, "--max-length", "513"], "the model has 512 positions"),
        (["finetune", "--task", "demo_ner", *ours, "--batch-size", "3", "--micro-batch-size", "2"], "a batch of 3"),
        (["finetune", "--task", "demo_ner", *ours, "--output-dir", inside], unwritten),
        (["finetune", "--task", "demo_ner", *ours, "--test-font", absent], "absent: no such file"),
        (["finetune", "--task", "hotel", *ours, "--data", absent], "absent"),
        (["pretrain", "--data", f"{absent}.txt"], "absent.txt: no such file"),
        (["pretrain", "--exclude-characters", absent], "absent: cannot be read"),
        (["pretrain", "--train-font", absent], "absent: no such file"),
        (["reproduce", "--output-dir", inside], unwritten),
        (["reproduce", "--preset", "nano", "--max-length", "65"], "the model has 64 positions"),
        (["reproduce", "--side-by-side", "999"], "give 1 to 64"),
        (["reproduce", "--tasks", "none"], "no task is named 'none'"),
        (["reproduce", "--data", absent], "no folder of a task there"),
        (["reproduce", "--text", f"{absent}.txt"], "absent.txt: no such file"),
        (["reproduce", "--look-alikes", absent], "absent: cannot be read"),
        (["reproduce", "--bert-vocabulary", absent], "absent: cannot be read"),
        (["reproduce", "--other-font", absent], "absent: no such file"),
    ]
    program = (
        "import json, sys\nfrom glyphcrm.cli.entry import main\nfor words in json.loads(sys.argv[1]):\n"
        "    print(main(words), 'torch' in sys.modules)"
    )
    before = sorted(tmp_path.rglob("*"))
    words = json.dumps([command for command, _ in commands])
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", program, words], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines() == ["2 False"] * len(commands), done.stderr
    for (_, complaint), line in zip(commands, done.stderr.splitlines(), strict=True):
        assert line.startswith("error: ") and complaint in line
    assert sorted(tmp_path.rglob("*")) == before
