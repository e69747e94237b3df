"""The one kind of error that a user can mend, how its line quotes a file, and the exit codes of failed commands."""

from __future__ import annotations

from collections.abc import Iterable

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130
SHOWN_CHARACTERS = 40
LISTED_NAMES = 20


class UserError(ValueError):
    """A mistake in what the user gave: one line that names what, where, and what to do instead."""


def shown(value: str) -> str:
    """Return a value from a file in quotes, its first 40 characters at most."""
    return repr(value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…")


def listed(names: Iterable[object]) -> str:
    """Return names from a file in quotes between commas: the first 20, and how many more there are."""
    quoted = [shown(str(name)) for name in names]
    more = len(quoted) - LISTED_NAMES
    return ", ".join(quoted[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
