"""Font files read and drawn by another process, within bounds on time and memory.

A small file can ask for gigabytes (compressed tables) or for hours (composite glyphs and subroutines that multiply),
inside libraries that cannot be interrupted. So every font but the default one is given to a process of its own, which
reads and draws with the code that this one would use. It may take `MEMORY` bytes of address space, and as many seconds
of processor time as the tasks below are given; after ten times as long by the clock it is ended. Where Python has
no module `resource` (Windows), the clock alone bounds it.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from glyphcrm.errors import UserError
from glyphcrm.glyphs.font_file import Font, read_font
from glyphcrm.glyphs.raster import PACKED_BYTES, Rasterizer

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MEMORY = 1 << 30  # bytes
READ_SECONDS = 10
DRAW_SECONDS = 10  # for a font, and `TOKEN_SECONDS` more for each token; a character takes about 0.0003
TOKEN_SECONDS = 0.01
CLOCK_FACTOR = 10  # by the clock a process may take so much longer, as others may have the processor
IDLE_SECONDS = 20  # then it ends, and the next request starts another
CHUNK = 256  # tokens a message

# Not the whole package, which imports transformers.
_START = """
import sys, types
package = types.ModuleType("glyphcrm")
package.__path__ = [sys.argv[1]]
sys.modules["glyphcrm"] = package
from glyphcrm.glyphs.font_process import serve
serve()
"""


def read_font_within_bounds(path: Path, face: str | None, weight: float) -> Font:
    """Return `read_font` of the same arguments; raise `UserError` as it does, or if the bounds do not suffice."""
    request = {"read": [str(path), face, weight]}
    return _font(_ask(f"font {path}", request, READ_SECONDS))


def draw_within_bounds(font: Font, tokens: Sequence[str]) -> Iterator[tuple[str, bytes, str | None]]:
    """Yield each token, its bitmap (288 bytes, blank if it has no ink or fails) and, if it fails, the reason.

    Raises `UserError` if the bounds do not suffice.
    """
    seconds = DRAW_SECONDS + TOKEN_SECONDS * len(tokens)
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        reply = _ask(f"font {font.path}: {font.name}", {"draw": chunk}, seconds, font)
        seconds -= reply["seconds"]
        bitmaps = bytes.fromhex(reply["bitmaps"])
        for i, token in enumerate(chunk):
            yield token, bitmaps[i * PACKED_BYTES : (i + 1) * PACKED_BYTES], reply["failures"].get(token)


def stop() -> None:
    """End the process, if there is one; the next request starts another."""
    global _process
    with _lock:
        if _process is not None:
            _process.end()
        _process = None


class _Process:
    """The other process, as this one sees it."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        self.child = subprocess.Popen(
            [sys.executable, "-c", _START, str(Path(__file__).parents[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONPATH": paths},
        )
        self.owner = os.getpid()  # after a fork the pipes are still the parent's
        self.known: dict[Font, int] = {}
        self.late = False

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self.child.poll() is None

    def ask(self, request: dict[str, Any], seconds: float, font: Font | None) -> dict[str, Any] | None:
        """Return the reply, or None if the process ended before it replied."""
        assert self.child.stdin is not None and self.child.stdout is not None
        if font is not None:
            if font not in self.known:
                request["describe"] = _fields(font)
            request["font"] = self.known.setdefault(font, len(self.known))
        watch = threading.Timer(CLOCK_FACTOR * seconds, self._give_up)
        watch.start()
        try:
            self.child.stdin.write(json.dumps({**request, "seconds": seconds}).encode() + b"\n")
            self.child.stdin.flush()
            reply: dict[str, Any] = json.loads(self.child.stdout.readline())
            return reply
        except (OSError, ValueError):
            return None
        finally:
            watch.cancel()

    def _give_up(self) -> None:
        self.late = True
        self.child.kill()

    def end(self) -> int:
        """End the process, if it has not ended, and return its exit code."""
        if self.owner != os.getpid():
            return 0
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        try:
            return self.child.wait(1)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


_process: _Process | None = None
_lock = threading.RLock()
atexit.register(stop)


def _ask(what: str, request: dict[str, Any], seconds: float, font: Font | None = None) -> dict[str, Any]:
    """Return the reply to a request about `what`; raise `UserError` for the reason why there is none."""
    global _process
    with _lock:
        if _process is None or not _process.usable:
            _process = _Process()
        try:
            reply = _process.ask(request, seconds, font)
        except BaseException:  # an interruption: the reply would be taken for that to the next request
            stop()
            raise
        if reply is None:
            ended = _process
            _process = None
            exit_code = ended.end()
            if exit_code == -getattr(signal, "SIGALRM", 0):  # it went while the request came
                return _ask(what, request, seconds, font)
            if exit_code == -getattr(signal, "SIGXCPU", 0) or ended.late:
                raise UserError(f"{what}: takes more than {seconds:.0f} seconds of processor time; give another font")
            raise UserError(f"{what}: the process that reads it has crashed; give another font")
        if reply.get("exhausted"):
            stop()
            raise UserError(f"{what}: needs more than {MEMORY >> 20} MiB of memory; give another font")
    if "error" in reply:
        raise UserError(reply["error"])
    return reply


def serve() -> None:
    """Read requests from standard input, and write a reply to each to standard output, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_AS", MEMORY)
    replies, sys.stdout = sys.stdout, sys.stderr
    rasterizers: dict[int, Rasterizer] = {}
    while True:
        _alarm(IDLE_SECONDS)
        if not (line := sys.stdin.readline()):
            return
        _alarm(0)
        request = json.loads(line)
        began = time.process_time()
        _limit("RLIMIT_CPU", math.ceil(began + request["seconds"]))
        try:
            reply = _read(*request["read"]) if "read" in request else _draw(request, rasterizers)
        except UserError as error:
            reply = {"error": str(error)}
        except MemoryError:
            reply = {"exhausted": True}
        print(json.dumps({**reply, "seconds": time.process_time() - began}), file=replies, flush=True)


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _limit(name: str, value: int) -> None:
    if resource is None:
        return
    kind = getattr(resource, name)
    _, most = resource.getrlimit(kind)
    with suppress(OSError, ValueError):  # a system that does not know this limit
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _read(path: str, face: str | None, weight: float) -> dict[str, Any]:
    return _fields(read_font(Path(path), face, weight))


def _draw(request: dict[str, Any], rasterizers: dict[int, Rasterizer]) -> dict[str, Any]:
    if fields := request.get("describe"):
        rasterizers[request["font"]] = Rasterizer(_font(fields))
    rasterizer = rasterizers[request["font"]]
    bitmaps, failures = bytearray(), {}
    for token in request["draw"]:
        try:
            bitmaps += rasterizer.draw_packed(token)
        except UserError as error:
            bitmaps += bytes(PACKED_BYTES)
            failures[token] = str(error)
    return {"bitmaps": bitmaps.hex(), "failures": failures}


def _fields(font: Font) -> dict[str, Any]:
    """Return what can be written as JSON of a font, and is all that drawing needs."""
    return {
        "path": str(font.path),
        "index": font.index,
        "name": font.name,
        "coverage": sorted(font.coverage),
        "axes": font.axes,
    }


def _font(fields: dict[str, Any]) -> Font:
    return Font(
        path=Path(fields["path"]),
        index=fields["index"],
        name=fields["name"],
        coverage=frozenset(fields["coverage"]),
        axes=tuple(fields["axes"]),
    )
