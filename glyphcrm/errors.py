"""The one kind of error that a user can mend, and how a command reports it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

USER_ERROR_EXIT_CODE = 2


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
