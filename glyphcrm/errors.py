"""The one kind of error that a user can mend, how its line quotes a file, and the exit codes of failed commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130
SHOWN_CHARACTERS = 40
LISTED_NAMES = 20
LINE_CHARACTERS = 1000


class UserError(ValueError):
    """A mistake in what the user gave: one line that names what, where, and what to do instead.

    Messages quote file names, keys and labels that anybody may have written: what would break the line or steer a
    terminal is shown escaped, and of a message that is too long the middle is left out.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(str(message)))


def one_line(message: str) -> str:
    """Return a message as one line of printable characters, 1,000 at most: its beginning and its end."""
    if not message.isprintable():  # line ends, controls, surrogates, what turns the direction of writing
        escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in _ends(message))
        message = "".join(escaped)
    return _ends(message)


def _ends(message: str) -> str:
    half = LINE_CHARACTERS // 2 - 2
    return message if len(message) <= LINE_CHARACTERS else f"{message[:half]} … {message[-half:]}"


def shown(value: str) -> str:
    """Return a value from a file in quotes, its first 40 characters at most."""
    return repr(value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…")


def listed(names: Iterable[object]) -> str:
    """Return names from a file in quotes between commas: the first 20, and how many more there are."""
    quoted = [shown(str(name)) for name in names]
    more = len(quoted) - LISTED_NAMES
    return ", ".join(quoted[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def exit_code_of(run: Callable[[], int]) -> int:
    """Return the exit code of a program that `run` is all of, after a line about an error that its user can mend.

    That is 2 after a `UserError` and after what the machine refuses, 130 after Ctrl-C.
    """
    try:
        exit_code = run()
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not at exit
        return exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # nor shall Python's own flush at exit complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("error: the program that reads the output has ended", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except OSError as error:
        if error.errno is None:
            raise
        what = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {one_line(what + str(error.strerror))}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
