"""The one kind of error that a user can mend, how a command reports it, and how its line quotes a file."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec

P = ParamSpec("P")

USER_ERROR_EXIT_CODE = 2
SHOWN_CHARACTERS = 40
LISTED_NAMES = 20


class UserError(ValueError):
    """A mistake in what the user gave: one line that names what, where, and what would do."""


def exit_on_user_error(command: Callable[P, int]) -> Callable[P, int]:
    """Make a command print a `UserError` as one line on stderr and return exit code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return USER_ERROR_EXIT_CODE

    return run


def shown(value: str) -> str:
    """Return a value from a file in quotes, its first 40 characters at most."""
    return repr(value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…")


def listed(names: Iterable[object]) -> str:
    """Return names from a file in quotes between commas: the first 20, and how many more there are."""
    quoted = [shown(str(name)) for name in names]
    more = len(quoted) - LISTED_NAMES
    return ", ".join(quoted[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
