"""One process at a time in a directory: a lock that a killed process leaves free."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from glyphcrm.errors import UserError, shown

LOCK_FILE = ".lock"
RECORD_BYTES = 1000
ATTEMPTS = 100  # then it is the place where nothing can be made: /proc, a working directory that is gone

_held: set[int] = set()  # file descriptors


def _close_in_child() -> None:
    """Let data loading processes, which may outlive this one by seconds, not hold its locks."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes, and other threads of this one, out of the block for the same directory.

    The directory is made if need be, and gone again if the block leaves it empty. The lock is `flock`'s on a file in
    it that names its holder; it ends with the process, however that ends. Over NFS it holds between machines where the
    server locks (version 4 does); on a file system without locks nothing is kept out, which is said.

    Args:
        directory: the directory to have alone.
        wait: wait for another holder instead of refusing.

    Raises:
        UserError: another process has it, or it cannot be made or written.
    """
    # The lock itself ends last: who waits for it finds the directory gone, and makes one of their own.
    with ExitStack() as last, ExitStack() as stack:
        path = directory / LOCK_FILE
        for attempt in itertools.count(1):
            try:
                for missing in [place for place in (directory, *directory.parents) if not place.exists()][::-1]:
                    missing.mkdir(exist_ok=True)
                    stack.callback(_remove_empty, missing)
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and attempt < ATTEMPTS:
                    continue  # its holder has removed the directory that it had made
                raise UserError(f"{directory}: {error.strerror}; name another directory") from error
            try:
                _take(lock, directory, wait)
            except BaseException:
                os.close(lock)
                raise
            if _is_at(lock, path):
                break
            os.close(lock)  # its holder has removed the file between our open and our lock
        _held.add(lock)
        last.callback(_close, lock)
        stack.callback(_remove_file, lock, path)
        with suppress(OSError):  # without a record it is a lock all the same
            os.ftruncate(lock, 0)
            os.pwrite(lock, _record(), 0)
        yield


def _take(lock: int, directory: Path, wait: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(lock)
        if not wait:
            raise UserError(
                f"{directory} is in use by {holder}; wait for its end or stop it, or name another directory"
            ) from None
        print(f"waiting for {holder}, which is writing in {directory}", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        print(f"{directory} cannot be locked ({error.strerror}): start nothing else in it", file=sys.stderr)


def _remove_file(lock: int, path: Path) -> None:
    if lock in _held:  # not in a forked process
        with suppress(OSError):
            if _is_at(lock, path):
                path.unlink()


def _close(lock: int) -> None:
    if lock in _held:
        _held.remove(lock)
        os.close(lock)


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except FileNotFoundError:
        return False


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def _record() -> bytes:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _holder(lock: int) -> str:
    try:
        record = json.loads(os.pread(lock, RECORD_BYTES, 0))
        return f"process {int(record['pid'])} on {shown(str(record['host']))} since {shown(str(record['since']))}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
