"""The one kind of error that a user can mend, and the exit codes of a command that did not succeed."""

from __future__ import annotations

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130


class UserError(ValueError):
    """A mistake in what the user gave: one line that names what, where, and what would do."""
