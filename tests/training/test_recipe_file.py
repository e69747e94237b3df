"""Recipes: what they may say, what is refused in one line with its place, and that a run's own repeats it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glyphcrm.errors import UserError
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.training.recipe_file import RECIPE_BYTES, write_recipe


def written(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_a_recipe_is_read_as_the_command_line_is_which_wins(tmp_path: Path) -> None:
    content = (
        "preset: nano  # a remark\nlearning-rate: 1e-4\nbf16: off\ndata: [a.txt, 'b c.txt']\nfont: x.ttf\n"
        "input_only: False\nreport_to: [none]\nsteps: 7\ninit: null\ntext_column: '12'\n"
    )
    words = [
        *("--preset", "nano", "--learning-rate", "1e-4", "--bf16", "off", "--data", "a.txt", "b c.txt", "--font"),
        *("x.ttf", "--no-input-only", "--report-to", "none", "--steps", "9", "--text-column", "12", "--seed", "3"),
    ]
    recipe = written(tmp_path, content)
    assert PretrainOptions.parse([recipe, "--steps", "9", "--seed", "3"]) == PretrainOptions.parse(words)
    told = FinetuneOptions.parse([written(tmp_path, "task: demo_ner\nmodel: X\n"), "--model", "Y"])
    assert (told.task, told.model) == ("demo_ner", "Y")


@example("\x85", 1e-5, True, 0)
@example("语料 #1: 'a'" * 20, 0.0, False, 1)
@given(st.text(st.characters(codec="utf-8"), min_size=1), st.floats(0, 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_a_run_keeps_repeats_it(
    tmp_path_factory: pytest.TempPathFactory, text: str, rate: float, flag: bool, seed: int
) -> None:
    options = PretrainOptions(
        data=[text, "off"], text_column=text, input_only=flag, learning_rate=rate, seed=seed, preset="nano"
    )
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    write_recipe(path, {**asdict(options), **asdict(options.recipe)})
    again = PretrainOptions.parse([str(path)])
    assert (again.identity(), again.data, again.output_dir) == (options.identity(), options.data, options.output_dir)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps: 1\nstepz: 2\n", r"mine.yaml:2: there is no option 'stepz'"),
        ("recipe: other.yaml\n", r"mine.yaml:1: there is no option 'recipe'"),
        ("\nsteps: many\n", r"mine.yaml:2: steps is 'many'; give a whole number"),
        ("steps: 1.5\n", "give a whole number"),
        ("dropout: [0.1]\n", "mine.yaml:1: dropout: a list where one value is wanted"),
        ("seed: {a: 1}\n", "a mapping where one value"),
        ("data: [[a]]\n", "a list where"),
        ("? [a]\n: 1\n", "the name of an option: a list"),
        ("input_only: perhaps\n", "give true or false"),
        ("preset: huge\n", r"mine.yaml:1: preset is 'huge'; give one of .*'tiny'"),
        ("steps: 1\n\nsteps: 2\n", "mine.yaml:3: steps is in line 1, too"),
        ("max_length: 9\nmax-length: 9\n", "mine.yaml:2: max_length is in line 1"),
        ("seed: 1\nsteps: 0\n", "mine.yaml:2: --steps is 0"),
        ("data: !!python/object/apply:os.system [exit]\n", "mine.yaml:1: data has a tag"),
        ("data: !!python/name:os.system x\n", "has a tag"),
        ("steps: [1\nseed: 2\n", r"mine.yaml:2: no YAML"),
        ("a: 1\n--- \nb: 1\n", "no YAML"),
        ("steps\n", "no recipe"),
        ("", "no recipe"),
        (b"\xff\xfe\x00", "no YAML"),
        (b"steps: \x00", "no YAML"),
        ("a: " + "[" * 30_000, "nested too deep"),
        ("#" * (RECIPE_BYTES + 1), f"more than {RECIPE_BYTES} bytes"),
        ("a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(40)), "no option 'a'"),
    ],
)
def test_a_bad_recipe_is_refused_with_its_place(tmp_path: Path, content: str | bytes, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=message) as refused:
        PretrainOptions.parse([written(tmp_path, content)])
    assert "mine.yaml" in str(refused.value) and time.monotonic() - began < 5


def test_a_range_that_the_command_line_breaks_is_not_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--steps is 0"):
        PretrainOptions.parse([written(tmp_path, "steps: 3\n"), "--steps", "0"])


@pytest.mark.parametrize("words", [["mine"], ["--seed", "1", "mine.yaml"], ["mine.yaml", "more.yaml"]])
def test_a_recipe_that_does_not_come_first_is_told_of(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "steps: 3\n")
    with pytest.raises(SystemExit) as end:
        PretrainOptions.parse(words)
    assert end.value.code == 2 and "a recipe comes first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--presett", "nano"], "--presett; is --preset meant?"),
        (["--steps", "3", "--batchsize=4"], "--batchsize; is --batch-size meant?"),
        (["--frobnicate"], "--frobnicate; --help lists all"),
    ],
)
def test_an_option_that_there_is_not_is_told_of(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        PretrainOptions.parse(words)
    assert end.value.code == 2 and capsys.readouterr().err.endswith(f"error: no option is named {meant}\n")
