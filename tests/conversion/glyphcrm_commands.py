"""Runs many `glyphcrm` command lines in one fresh process: importing torch for each would take minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, and what reached the file descriptors 1 and 2."""

    exit_code: int
    stdout: str
    stderr: str


def run_commands(commands: Mapping[str, Sequence[str | Path]], directory: Path) -> dict[str, Outcome]:
    """Run each command line (without "glyphcrm"); their streams are kept as files in `directory`."""
    lines = [[str(argument) for argument in arguments] for arguments in commands.values()]
    subprocess.run([sys.executable, __file__, directory], input=json.dumps(lines), text=True, check=True)
    codes = json.loads((directory / "exit_codes.json").read_text())
    return {
        name: Outcome(code, *((directory / f"{i}.{stream}").read_text("utf-8") for stream in ("out", "err")))
        for i, (name, code) in enumerate(zip(commands, codes, strict=True))
    }


def assert_refused(outcome: Outcome, culprit: object) -> None:
    """Exit code 2, and one printable line on stderr: "error: ...", naming `culprit`."""
    assert outcome.exit_code == 2, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()  # no colours of other programs' messages
    assert str(culprit) in lines[0]
    assert outcome.stdout == ""


def _run_here(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _run_all(directory: Path) -> None:
    from glyphcrm.cli.entry import main

    codes = []
    for i, arguments in enumerate(json.load(sys.stdin)):
        for stream, number in (("out", 1), ("err", 2)):
            file = os.open(directory / f"{i}.{stream}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
        codes.append(_run_here(main, arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    (directory / "exit_codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    _run_all(Path(sys.argv[1]))
