"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

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
