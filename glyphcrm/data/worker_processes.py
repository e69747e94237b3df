"""A function over items in several processes, with the results in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from glyphcrm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) of each item, in order, as `map` does; with 2 `workers` or more from as many processes.

    This process reads `items`, one ahead of each process, so memory does not depend on their number. The processes are
    forked as items come, and end with this one, however it ends. What `function` raises is raised here.

    Raises:
        UserError: a process was killed.
    """
    if workers < 2:
        yield from map(function, items)
        return
    helpers: deque[_Helper] = deque()
    try:
        for item in items:
            if len(helpers) < workers:
                helpers.append(_Helper(function))
                helpers[-1].send(item)
                continue
            helper = helpers.popleft()
            helpers.append(helper)
            result = helper.receive()
            helper.send(item)
            yield result
        for helper in helpers:
            yield helper.receive()
    finally:
        for helper in helpers:
            helper.end()


class _Helper:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("fork")  # what `function` holds need not be pickled
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, item: object) -> None:
        try:
            self._connection.send(item)
        except OSError:
            raise self._death() from None

    def receive(self) -> Any:
        try:
            result, error = self._connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _death(self) -> UserError:
        self._process.join()
        return UserError(
            f"a process that reads the text has died (exit code {self._process.exitcode}), perhaps for its memory; "
            "repeat the command, with fewer --workers if it happens again"
        )


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Neither locks nor the pipes of other processes are kept open here after the parent's death.
    null = os.open(os.devnull, os.O_RDWR)
    for file in map(int, os.listdir("/dev/fd")):
        if file > 2 and file not in (null, connection.fileno()):
            os.dup2(null, file)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            item = connection.recv()
            try:
                answer: tuple[Any, Exception | None] = (function(item), None)
            except Exception as error:
                answer = (None, error)
            connection.send(answer)
