"""What a server of the page lets through: the requests of the page itself, of bounded size."""

from __future__ import annotations

import json
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_REQUEST = 8 << 20  # bytes: a text of a million characters is still told that it is too long

# Gradio has more routes: files of the machine, uploads, proxies, editors. The page needs none of them.
_GRADIO = "/gradio_api"
_READ = {"/", "/config", "/theme.css", "/song.otf", "/manifest.json", "/favicon.ico"}
_READ |= {f"{_GRADIO}/{name}" for name in ("info", "queue/data", "startup-events")}
_READ_BELOW = ("/assets/", "/static/", "/svelte/", "/pwa_icon/", f"{_GRADIO}/heartbeat/")
_ASK = {f"{_GRADIO}/{name}" for name in ("queue/join", "run/predict", "cancel", "reset")}


class Guard:
    """Refuses what no page of this server asks.

    That is other routes, larger bodies, pages of other sites, and values that are no text or number: of whatever path
    or URL Gradio is given as an object, it makes a copy that can be read. If `names` are given, other names of this
    machine are refused, too: a page of elsewhere whose name suddenly means 127.0.0.1 gets nothing.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer what is wrong with it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            body, wrong = await self._read(scope, receive)
            if wrong:
                await _refuse(send, *wrong)
            else:
                await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> tuple[bytes, tuple[int, str] | None]:
        """Return a request's body, and the status and reason if it is refused."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.names is not None and _hostname(f"//{host}") not in self.names:
            return b"", (400, "this page is for the machine that it runs on")
        if origin is not None and origin.partition("://")[2] != host:
            return b"", (403, "pages of other sites get no answer")
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            known = path in _READ or path.startswith(_READ_BELOW)
            return b"", None if known else (404, "the page has nothing of this name")
        if method != "POST" or path not in _ASK:
            return b"", (404, "the page has nothing of this name")
        claimed = headers.get("content-length", "0")
        body, more = b"", claimed.isdecimal() and int(claimed) <= LARGEST_REQUEST
        too_large = not more
        while more:
            message = await receive()
            body += message.get("body", b"")
            too_large = len(body) > LARGEST_REQUEST
            more = message.get("more_body", False) and not too_large
        if too_large:
            return b"", (413, "the request is too large; shorten the text")
        return body, None if _plain(body) else (422, "texts and numbers are read here, nothing else")


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _plain(body: bytes) -> bool:
    """Whether a body is JSON whose data are texts and numbers."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return False
    data = asked.get("data", []) if isinstance(asked, dict) else None
    return isinstance(data, list) and all(isinstance(value, str | int | float | None) for value in data)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read, and then what else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


async def _refuse(send: Send, status: int, reason: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})
