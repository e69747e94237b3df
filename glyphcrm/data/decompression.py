"""Compressed files as byte streams, with every way to be broken reported as a `UserError`."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from glyphcrm.errors import UserError

COMPRESSED = (".gz", ".xz", ".zst")
BUFFER = 1 << 20  # bytes


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open `path`, decompressed if it ends in one of `COMPRESSED`, as a buffered byte stream.

    Inside the `with`, a file that cannot be read, is cut short or is corrupt raises `UserError`.
    """
    ending = path.suffix.lower()
    try:
        with ExitStack() as opened:
            file = opened.enter_context(path.open("rb"))
            stream: BinaryIO = file
            if ending == ".gz":
                stream = cast(BinaryIO, opened.enter_context(gzip.GzipFile(fileobj=file)))
            elif ending == ".xz":
                stream = cast(BinaryIO, opened.enter_context(lzma.LZMAFile(file)))
            elif ending == ".zst":
                stream = opened.enter_context(_zstd_stream(path))
            yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), BUFFER))
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        broken = f"is cut short or corrupt ({error})" if ending in COMPRESSED else f"cannot be read ({error})"
        raise UserError(f"{path} {broken}") from None


def _zstd_stream(path: Path) -> BinaryIO:
    # pyarrow, not zstandard: zstandard's stream reader takes a file that is cut short for whole.
    try:
        import pyarrow as pa
    except ImportError:
        raise UserError(f'{path}: .zst needs pyarrow: pip install "glyphcrm[pretrain]"') from None
    return cast(BinaryIO, pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
