"""Values from files inside one-line messages: quoted, escaped, and cut to a length that can be read."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN_CHARACTERS = 40
LISTED_NAMES = 20


def shown(value: str) -> str:
    """Return `value` in quotes, its first 40 characters at most."""
    return repr(value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…")


def listed(names: Iterable[object]) -> str:
    """Return the names in quotes between commas: the first 20, and how many more there are."""
    quoted = [shown(str(name)) for name in names]
    more = len(quoted) - LISTED_NAMES
    return ", ".join(quoted[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
