"""Command lines of which a wrong option is named, whatever else is wrong."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any


def refuse_unknown_options(parser: ArgumentParser, words: Sequence[str]) -> None:
    """End the program with a line about the first word that looks like an option, and is none of `parser`.

    argparse itself would first say that a required option is missing, though it is there, with a typing mistake.
    """
    known = parser._option_string_actions
    for word in takewhile(lambda word: word != "--", words):
        name = word.partition("=")[0]
        is_value = " " in word or not word.startswith("-") or word[1:2] in ("", *".0123456789")
        if is_value or any(option.startswith(name) for option in known):
            continue
        near = get_close_matches(name.replace("_", "-"), [option for option in known if "_" not in option], 1, 0.75)
        parser.error(f"no option is named {name}; {f'is {near[0]} meant?' if near else '--help lists all'}")


class Parser(ArgumentParser):
    """An `ArgumentParser` that calls `refuse_unknown_options`; one with commands leaves it to theirs."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Namespace, list[str]]:  # type: ignore[override]
        """As in argparse."""
        if self._subparsers is None and args is not None:
            refuse_unknown_options(self, args)
        return super().parse_known_args(args, namespace)
