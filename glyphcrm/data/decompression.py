"""Compressed files as byte streams, with every way to be broken reported as a `UserError`."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from glyphcrm.data.remote_files import BUFFER, RemoteFile
from glyphcrm.errors import UserError

COMPRESSED = (".gz", ".xz", ".zst")


@contextmanager
def open_bytes(path: Path | RemoteFile) -> Iterator[BinaryIO]:
    """Open `path`, decompressed if it ends in one of `COMPRESSED`, as a buffered byte stream.

    Inside the `with`, a file that cannot be read, is cut short or is corrupt raises `UserError`.
    """
    ending = path.suffix.lower()
    openers: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zstd}
    try:
        with path.open() if isinstance(path, RemoteFile) else open(path, "rb", BUFFER) as file:
            if ending not in openers:
                yield cast(BinaryIO, file)
                return
            with openers[ending](file) as stream:
                yield cast(BinaryIO, io.BufferedReader(stream, BUFFER))
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        if ending in COMPRESSED and getattr(error, "errno", None) is None:
            raise UserError(f"{path} is cut short or corrupt ({reason}); get it again") from None
        raise UserError(f"{path}: cannot be read: {reason}") from None


def _open_zstd(file: BinaryIO) -> Any:
    # pyarrow, not zstandard: zstandard's stream reader takes a file that is cut short for whole.
    try:
        import pyarrow as pa
    except ImportError:
        raise UserError('.zst files need pyarrow: pip install "glyphcrm[pretrain]"') from None
    return pa.CompressedInputStream(pa.PythonFile(file), "zstd")
