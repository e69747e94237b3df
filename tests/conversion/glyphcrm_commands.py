"""Runs many `glyphcrm` command lines in one process of their own: importing torch for each would take minutes."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glyphcrm.cli.entry import main
from tests.robustness.processes import run_ranks


@dataclass(frozen=True)
class Command:
    """A command line (without "glyphcrm") with something wrong in it."""

    words: Sequence[str | Path]
    culprit: object  # what the error has to name
    kept: Path  # nothing in here may change
    canary: Path  # what would appear if code in the input was run


@dataclass(frozen=True)
class Taken:
    """How a command was taken: its exit code, what reached the file descriptors 1 and 2, and the files before."""

    command: Command
    exit_code: int
    stdout: str
    stderr: str
    before: dict[str, bytes | None]

    def assert_refused(self) -> None:
        """Exit code 2, one printable line on stderr: "error: ...", which names the culprit; and nothing else."""
        assert self.exit_code == 2, self.stderr
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()  # no colours of other programs' messages
        assert str(self.command.culprit) in lines[0]
        assert self.stdout == "" and not self.command.canary.exists()
        assert contents(self.command.kept) == self.before


def contents(directory: Path) -> dict[str, bytes | None]:
    """Return every file and folder under `directory`, itself included."""
    paths = [directory, *directory.rglob("*")]
    return {str(p): p.read_bytes() if p.is_file() else None for p in paths if p.exists()}


def run_commands(commands: Mapping[str, Command], directory: Path) -> dict[str, Taken]:
    """Run all of them; their streams are kept as files in `directory`."""
    lines = [[str(word) for word in command.words] for command in commands.values()]
    before = [contents(command.kept) for command in commands.values()]
    run_ranks(_run_all, (directory, lines), 1)
    codes = json.loads((directory / "exit_codes.json").read_text())
    taken = {}
    for i, (name, command) in enumerate(commands.items()):
        streams = ((directory / f"{i}.{stream}").read_text("utf-8") for stream in ("out", "err"))
        taken[name] = Taken(command, codes[i], *streams, before[i])
    return taken


def _run_here(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _run_all(rank: int, directory: Path, lines: list[list[str]]) -> None:
    codes = []
    for i, arguments in enumerate(lines):
        for stream, number in (("out", 1), ("err", 2)):
            file = os.open(directory / f"{i}.{stream}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
        codes.append(_run_here(main, arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    (directory / "exit_codes.json").write_text(json.dumps(codes))
