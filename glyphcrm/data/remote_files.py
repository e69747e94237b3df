"""Files behind URLs, through fsspec: s3://, gs://, hf://, https:// and what else it knows."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from glyphcrm.errors import UserError

BUFFER = 1 << 20  # bytes
SILENCE = 60  # seconds without an answer
REASON = 300  # characters of what a file system says
_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_SECRET = re.compile(r"(?<=//)[^/@]*@|\?.*")  # name and password, or the signature of a link
# What file systems say about a file, as `_mark` writes it: of its content, and else of its time.
_OF_CONTENT = ("etag", "md5hash", "contentmd5", "crc32c", "blobid", "sha256", "uid")
_OF_TIME = ("mtime", "lastmodified", "updated", "created", "generation", "versionid")

Answer = TypeVar("Answer")


def is_url(pattern: str) -> bool:
    """Whether a pattern of --data is for fsspec."""
    return bool(_URL.match(pattern))


@dataclass(frozen=True)
class RemoteFile:
    """A file of an fsspec file system; as text it is its URL without secrets.

    Attributes:
        size: bytes, None where the server does not say.
        mark: changes with the file, as far as its file system tells.
    """

    system: Any
    path: str
    size: int | None
    mark: str

    def __str__(self) -> str:
        return _SECRET.sub("", self.system.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        return PurePosixPath(str(self)).name

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.name).suffixes

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def open(self) -> io.BufferedReader:
        """Open it for reading; whatever then goes wrong is a `UserError` that names it."""
        stream = _told(self, lambda: self.system.open(self.path, "rb"))
        return io.BufferedReader(_Watched(self, stream), BUFFER)


class _Watched(io.RawIOBase):
    def __init__(self, file: RemoteFile, stream: Any) -> None:
        self._file, self._stream = file, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        content = _told(self._file, lambda: self._stream.read(len(buffer)))
        if not content and self._file.size is not None and self.tell() < self._file.size:
            raise UserError(f"{self._file}: ended after {self.tell()} of {self._file.size} bytes; repeat the command")
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(_told(self._file, lambda: self._stream.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def files_at(url: str) -> list[RemoteFile] | Path:
    """Return the files that a URL, with a glob or without, names; for one of this machine its path or glob.

    Raises `UserError`: nothing is there, it cannot be reached, or the library for its protocol is not installed.
    """
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

    where = _SECRET.sub("", url)
    system, path = _told(where, lambda: url_to_fs(url, **_limits(url)))
    if isinstance(system, LocalFileSystem):
        return Path(path)
    has_magic = any(sign in path for sign in ("*[" if "://" in path else "*[?"))
    paths = _told(where, lambda: sorted(system.glob(path))) if has_magic else [path]
    infos = {path: _told(where, partial(system.info, path)) for path in paths}
    if not has_magic and infos[path].get("type") == "directory":
        raise UserError(f"{where} is a directory; name its files, for example '{where}/*.txt'")
    files = [
        RemoteFile(system, path, info.get("size"), _mark(info))
        for path, info in infos.items()
        if info.get("type") != "directory"
    ]
    if not files:
        raise UserError(f"no file matches '{where}'")
    return files


def _limits(url: str) -> dict[str, Any]:
    """Return settings of HTTP: aiohttp gives the whole of a request five minutes, be its server silent or at work."""
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)}}


def _told(where: object, ask: Callable[[], Answer]) -> Answer:
    """Ask a file system; whatever it raises becomes a `UserError`."""
    try:
        return ask()
    except ImportError as error:
        raise UserError(f"{where}: its protocol needs a library: {error}") from None
    except Exception as error:  # each protocol has its own
        cause = error.__cause__ or error  # of a server that does not answer fsspec says that its file is not found
        missing = isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == HTTPStatus.NOT_FOUND
        if isinstance(error, FileNotFoundError) and missing:
            raise UserError(f"{where}: no such file") from None
        told = cause if isinstance(error, FileNotFoundError) else error
        reason = _SECRET.sub("", f"{type(told).__name__}: {str(told)[:REASON]}")
        raise UserError(
            f"{where}: cannot be read: {reason}; check the address, or repeat the command when it can be"
        ) from None


def _mark(info: dict[str, Any]) -> str:
    told = {name.lower().replace("-", "").replace("_", ""): str(value) for name, value in info.items() if value}
    for names in (_OF_CONTENT, _OF_TIME):
        if marks := {name: told[name] for name in names if name in told}:
            break
    return json.dumps([told.get("size"), marks], sort_keys=True)
