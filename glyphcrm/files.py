"""Writing a file or a directory whole or not at all, and telling whether a file is still what it was."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from glyphcrm.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError
SETTLED_NS = 2_000_000_000  # a file changed this recently may change again without its times showing it (FAT: 2 s)

_taken: dict[str, dict[str, object]] = {}  # what `file_digest` keeps, of this process


def write_atomically(path: Path, content: bytes) -> None:
    """Make `content` the content of `path`, or leave `path` as it was and raise `UserError`.

    The bytes go to a new file beside it, reach the disk, and only then take the name.
    """
    target = path.resolve()  # a symbolic link stays one
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written: {reason}; make room or name another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raise `UserError` if nothing could be made at `path`; its folder may be missing, as `path` may.

    It is asked before work that takes long. What is there stays; whether there is room shows in the end.
    """
    _check_folder(path.resolve().parent, path)


def check_directory(directory: Path) -> None:
    """As `check_place`, of files in `directory`."""
    _check_folder(directory.resolve(), directory)


def _check_folder(folder: Path, named: Path) -> None:
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        if there.exists():  # else another process has just removed what it had made
            raise UserError(f"{named}: cannot be written: {error.strerror or error}; name another place") from None
    _check_folder(folder, named)


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Give the block an empty directory that takes the name `directory` at its end, and is gone if it fails.

    Raises `UserError`: files cannot be written, or there is a directory of that name that is not empty.
    """
    directory = directory.resolve()
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        yield temporary
        follow_umask(temporary)
        if directory.exists():
            directory.rmdir()  # only an empty one gives way
        temporary.rename(directory)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{directory}: cannot be written: {reason}; make room or name another place") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def follow_umask(directory: Path) -> None:
    """Give a directory and all in it the usual modes: safetensors and mkdtemp shut out all other users."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in (directory, *directory.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def file_digest(path: Path, cache: Path | None = None) -> str:
    """Return the hex SHA-256 of a whole file, read only when the file may have changed since it was last read.

    The digest is kept in this process, and in the JSON file `cache` if its folder is there and can be written in. What
    was kept counts only while the file's size, inode, and times of change (to the nanosecond) are the same; it is not
    kept of a file that changed less than two seconds before, since such a file can change again within a clock tick.

    Raises `UserError` when the file cannot be read.
    """
    key = os.path.abspath(path)
    kept = _read_cache(cache)
    try:
        with open(path, "rb") as file:
            state = _state(file.fileno())
            for known in (_taken.get(key), kept.get(key)):
                if isinstance(known, dict) and known.get("state") == state and isinstance(known.get("sha256"), str):
                    digest = str(known["sha256"])
                    break
            else:
                began = time.time_ns()
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if _state(file.fileno()) != state or began - max(state[2:]) < SETTLED_NS:
                    return digest
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    _taken[key] = {"state": state, "sha256": digest}
    if cache is not None and kept.get(key) != _taken[key]:
        with suppress(UserError):  # no such folder yet, or none to write in: the digest is taken again
            write_atomically(cache, (json.dumps({**kept, key: _taken[key]}, indent=1) + "\n").encode())
    return digest


def _state(file: int) -> list[int]:
    """Return what changes when a file is written or replaced: size, inode, and times of change in ns."""
    status = os.fstat(file)
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _read_cache(cache: Path | None) -> dict[str, object]:
    """Return what an earlier process kept; nothing if there is no such file, or it is damaged."""
    try:
        kept = json.loads(cache.read_bytes()) if cache is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
