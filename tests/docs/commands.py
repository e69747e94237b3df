"""Commands of the pages, each through the parser of its own program; nothing is done but parsing."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import pytest

from tests.docs.pages import ROOT


class Parsed(Exception):
    """A program's parser took all of its arguments."""


def check_commands(text: str) -> None:
    """Check each command of a shell block; an unknown program or option is an `AssertionError`."""
    commands = [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]
    assert commands, "a shell block without a command; mark output as ```text"
    for words in commands:
        check_command(words)


def check_command(words: list[str]) -> None:
    """Check one command, given as words; variables in front of it are left out."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words
    program = program.rpartition("/")[2]
    assert program in PROGRAMS, f"{program}: no runner for it; known: {', '.join(PROGRAMS)}"
    PROGRAMS[program](arguments)


def _make(arguments: list[str]) -> None:
    """Targets are in the Makefile, variables are used by it, and ARGS go to the target's program."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    targets = [argument for argument in arguments if "=" not in argument]
    assert targets
    for target in targets:
        recipe = re.search(rf"^{re.escape(target)}:.*\n(?P<lines>(?:\t.*\n)*)", makefile, re.MULTILINE)
        assert recipe, f"make {target}: there is no such target"
        for name in variables:
            assert f"$({name})" in makefile, f"{name}: the Makefile does not use it"
        takers = [line for line in recipe["lines"].replace("\\\n", " ").splitlines() if "$(ARGS)" in line]
        assert takers or "ARGS" not in variables, f"make {target}: it does not pass ARGS on"
        for line in takers:
            filled = line.replace("$(ARGS)", variables.get("ARGS", "")).replace("$(MODEL)", "MODEL")
            check_command(shlex.split(filled.strip().replace("$(BIN)/", "")))


def _glyphcrm(arguments: list[str]) -> None:
    from glyphcrm.cli.entry import main

    with _parsing_only("glyphcrm", arguments):
        main(arguments)


def _python(arguments: list[str]) -> None:
    """`python FILE ...` or `python -m MODULE ...`."""
    if arguments[0] != "-m":
        with _parsing_only(*_split(arguments)):
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        return
    module, *rest = arguments[1:]
    if module == "pytest":
        _pytest(rest)
        return
    with _parsing_only(module, rest):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    _python([parsed.training_script, *parsed.training_script_args])


def _pip(arguments: list[str]) -> None:
    from pip._internal.commands import create_command

    name, *rest = arguments
    _, requirements = create_command(name).parse_args(rest)
    for requirement in requirements:
        if requirement.startswith("."):
            assert (ROOT / requirement.partition("[")[0] / "pyproject.toml").exists(), requirement


def _pytest(arguments: list[str]) -> None:
    """Options by pytest's own parser, with its plug-ins' and those of bench/; files and folders exist."""
    from _pytest.config import get_config

    from bench.conftest import pytest_addoption

    config = get_config()
    config.pluginmanager.load_setuptools_entrypoints("pytest11")
    pytest_addoption(config._parser)
    known, unknown = config._parser.parse_known_and_unknown_args(arguments)
    assert not unknown, f"pytest {unknown}: unknown"
    for place in known.file_or_dir:
        assert (ROOT / place.partition("::")[0]).exists(), f"pytest {place}: no such file"


def _bash(arguments: list[str]) -> None:
    assert (ROOT / arguments[0]).is_file(), arguments


def _pre_commit(arguments: list[str]) -> None:
    assert arguments in (["install"], ["run", "--all-files"]), arguments


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "bash": _bash,
    "glyphcrm": _glyphcrm,
    "make": _make,
    "pip": _pip,
    "pre-commit": _pre_commit,
    "pytest": _pytest,
    "python": _python,
    "torchrun": _torchrun,
}


def _split(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[1:]


@contextmanager
def _parsing_only(program: str, arguments: list[str]) -> Iterator[None]:
    """Run what is inside until its last parser has taken all of the arguments; a complaint is an `AssertionError`."""
    parse = argparse.ArgumentParser.parse_known_args
    depth = 0

    def parse_and_stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        nonlocal depth
        depth += 1
        try:
            namespace, rest = parse(self, args, namespace)
        finally:
            depth -= 1
        if depth:  # a sub-command's parser, called by the command's
            return namespace, rest
        if rest:
            self.error(f"unknown: {' '.join(rest)}")
        raise Parsed

    def complain(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise AssertionError(f"{program} {shlex.join(arguments)}: {message}")

    with (
        patch.object(argparse.ArgumentParser, "parse_known_args", parse_and_stop),
        patch.object(argparse.ArgumentParser, "error", complain),
        patch.object(sys, "argv", [program, *arguments]),
        pytest.raises(Parsed),
    ):
        yield
