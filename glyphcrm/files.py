"""Writing a file or a directory whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from glyphcrm.errors import UserError


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
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
        temporary.chmod(0o755)
        yield temporary
        if directory.exists():
            directory.rmdir()  # only an empty one gives way
        temporary.rename(directory)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory} could not be written ({error}); make room or name another") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
