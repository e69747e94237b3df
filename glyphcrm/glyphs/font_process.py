"""Font files read and drawn by other processes, within bounds on time and memory.

A small file can ask for gigabytes (compressed tables) or for hours (composite glyphs and subroutines that multiply),
inside libraries that cannot be interrupted. So every font but the default one is given to a process, one for each
thing that is asked, which reads and draws with the code that this one would use; it takes a quarter of a second to
start. It may take `MEMORY` bytes of address space, and as many seconds of processor time as the tasks below are given;
after ten times as long by the clock it is ended. Where Python has no module `resource` (Windows), the clock alone
bounds it.
"""

from __future__ import annotations

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
EXHAUSTED = 3  # exit code: not enough memory

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
    (fields,) = _ask(f"font {path}", {"read": [str(path), face, weight]}, READ_SECONDS)
    return _font(fields)


def draw_within_bounds(font: Font, tokens: Sequence[str]) -> Iterator[tuple[str, bytes, str | None]]:
    """Yield each token, its bitmap (288 bytes, blank if it has no ink or fails) and, if it fails, the reason.

    Raises `UserError` if the bounds do not suffice.
    """
    if not tokens:
        return
    request = {"font": _fields(font), "draw": tokens}
    replies = _ask(f"font {font.path}: {font.name}", request, DRAW_SECONDS + TOKEN_SECONDS * len(tokens))
    for token, (bitmap, failure) in zip(tokens, replies, strict=True):
        yield token, bytes.fromhex(bitmap), failure


def _ask(what: str, request: dict[str, Any], seconds: float) -> Iterator[Any]:
    """Yield the replies to a request about `what`; raise `UserError` for the reason why there are no more."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    late = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", _START, str(Path(__file__).parents[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **threads, "PYTHONPATH": paths},
    ) as child:
        assert child.stdin is not None and child.stdout is not None

        def give_up() -> None:
            late.set()
            child.kill()

        watch = threading.Timer(CLOCK_FACTOR * seconds, give_up)
        watch.start()
        try:
            with suppress(OSError), child.stdin:  # if it has ended, its exit code tells why
                child.stdin.write(json.dumps({**request, "seconds": seconds}).encode())
            for line in child.stdout:
                if not line.endswith(b"\n"):  # it was ended meanwhile
                    break
                reply = json.loads(line)
                if isinstance(reply, dict) and "error" in reply:
                    raise UserError(reply["error"])
                yield reply
            exit_code = child.wait()
        finally:
            watch.cancel()
            child.kill()
    if late.is_set() or exit_code == -getattr(signal, "SIGXCPU", 0) != 0:
        raise UserError(f"{what}: takes more than {seconds:.0f} seconds of processor time; give another font")
    if exit_code == EXHAUSTED:
        raise UserError(f"{what}: needs more than {MEMORY >> 20} MiB of memory; give another font")
    if exit_code:
        raise UserError(f"{what}: the process that reads it has crashed; give another font")


def serve() -> None:
    """Read a request from standard input, and write the replies to standard output, a line each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_AS", MEMORY)
    replies, sys.stdout = sys.stdout, sys.stderr
    request = json.load(sys.stdin)
    _limit("RLIMIT_CPU", math.ceil(time.process_time() + request["seconds"]))
    try:
        for reply in _read(*request["read"]) if "read" in request else _draw(**request):
            print(json.dumps(reply), file=replies)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=replies)
    except MemoryError:
        os._exit(EXHAUSTED)
    replies.flush()


def _limit(name: str, value: int) -> None:
    if resource is None:
        return
    kind = getattr(resource, name)
    _, most = resource.getrlimit(kind)
    with suppress(OSError, ValueError):  # a system that does not know this limit
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _read(path: str, face: str | None, weight: float) -> Iterator[dict[str, Any]]:
    yield _fields(read_font(Path(path), face, weight))


def _draw(font: dict[str, Any], draw: Sequence[str], **_: float) -> Iterator[tuple[str, str | None]]:
    rasterizer = Rasterizer(_font(font))
    for token in draw:
        try:
            yield rasterizer.draw_packed(token).hex(), None
        except UserError as error:
            yield bytes(PACKED_BYTES).hex(), str(error)


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
