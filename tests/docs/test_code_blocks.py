"""Every code block of the README and the docs works, or is marked as output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.tasks.own_task import read_own_task
from tests.docs.commands import check_command, check_commands
from tests.docs.pages import PAGES, ROOT, Block, blocks

OUTPUT = "text"  # what a program prints: for the eyes only
BLOCKS = [block for page in PAGES for block in blocks(page)]
CLAIMED = [block for block in BLOCKS if block.language != OUTPUT]


def run_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute it as from the root of the repository, with the shipped checkpoint; what it writes goes elsewhere."""
    for entry in ROOT.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})


def parse_shell(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each command to its own parser."""
    monkeypatch.chdir(ROOT)
    check_commands(block.text)


def read_toml(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only TOML that a user writes is a task."""
    path = tmp_path / "task.toml"
    path.write_text(block.text, encoding="utf-8")
    assert read_own_task(path).name == "task"


def read_yaml(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only YAML that a user writes is a recipe."""
    path = tmp_path / "recipe.yaml"
    path.write_text(block.text, encoding="utf-8")
    PretrainOptions.parse([str(path)])


RUNNERS: Mapping[str, Callable[[Block, Path, pytest.MonkeyPatch], None]] = {
    "python": run_python,
    "sh": parse_shell,
    "toml": read_toml,
    "yaml": read_yaml,
}


def test_every_block_is_output_or_has_a_runner() -> None:
    """A block in another language, or in none, would be skipped silently."""
    assert not [block.place for block in CLAIMED if block.language not in RUNNERS]
    assert {block.language for block in CLAIMED} == set(RUNNERS)


@pytest.mark.parametrize("block", CLAIMED, ids=lambda block: block.place)
def test_block(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RUNNERS[block.language](block, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "make nonsense",
        "make test ARGS=--steps",
        "make pretrain ARGS=--nonsense",
        "make pretrain NONSENSE=1",
        "glyphcrm nonsense",
        "glyphcrm atlas encode --modell DIR",
        "glyphcrm convert-half --model DIR",
        "torchrun --standalone pretrain.py --preset huge",
        "torchrun --nonsense pretrain.py",
        "python finetune.py --model DIR",
        "python -m bench.precision --nonsense",
        "pytest tests/nonsense",
        "pytest --nonsense",
        "pip install ./nonsense",
        "nonsense",
    ],
)
def test_a_wrong_command_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself works: none of these passes."""
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, SystemExit, ModuleNotFoundError)):
        check_command(command.split())
