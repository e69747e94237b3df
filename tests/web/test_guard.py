"""What the page's server refuses before Gradio sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("gradio")
from glyphcrm.web.address import bind, names_of
from glyphcrm.web.guard import LARGEST_REQUEST, Guard

JOIN = "/gradio_api/queue/join"
PLAIN = b'{"data": ["text", 1, 0.5, true, null], "fn_index": 1}'


def ask(method: str, path: str, body: bytes = b"", names: set[str] | None = None, **headers: str) -> int:
    """Return the status; 200 where the application is asked, which must be given the same body."""
    sent: list[Any] = []
    half = len(body) // 2
    messages = [{"type": "http.request", "body": body[:half], "more_body": True}]
    messages += [{"type": "http.request", "body": body[half:], "more_body": False}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if method == "POST":
            assert (await receive())["body"] == body
        await send({"type": "http.response.start", "status": 200, "headers": []})

    head = {"host": "localhost:7860", **headers}
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in head.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": lines}
    asyncio.run(Guard(application, names)(scope, receive, send))
    return int(sent[0]["status"])


def test_what_the_page_asks_passes() -> None:
    assert ask("POST", JOIN, PLAIN, origin="http://localhost:7860") == 200
    assert ask("POST", JOIN, json.dumps({"data": ["天" * 1_000_000]}, ensure_ascii=False).encode()) == 200
    assert ask("POST", "/gradio_api/reset", b'{"event_id": "x"}') == 200
    assert {ask("GET", path) for path in ("/", "/assets/index.js", "/gradio_api/queue/data", "/song.otf")} == {200}


@pytest.mark.parametrize(
    "data",
    [
        [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}],
        [["text"]],
        ["text", [{"path": "x"}]],
        {"path": "x"},
        "text",
        None,
    ],
)
def test_what_is_no_text_is_refused(data: object) -> None:
    assert ask("POST", JOIN, json.dumps({"data": data}).encode()) == 422


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b"[" * 1_000_000, b'{"data": ["a"], "data": [{}]}'])
def test_bodies_that_ask_nothing(body: bytes) -> None:
    assert ask("POST", JOIN, body) == 422


def test_sizes() -> None:
    assert ask("POST", JOIN, PLAIN + b" " * LARGEST_REQUEST) == 413
    assert ask("POST", JOIN, PLAIN, content_length=str(LARGEST_REQUEST + 1)) == 413
    assert ask("POST", JOIN, PLAIN, content_length="-1") == 413


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "null", "http://localhost:3000", "http://localhost"])
def test_other_sites_are_refused(origin: str) -> None:
    assert ask("POST", JOIN, PLAIN, origin=origin) == ask("GET", "/config", origin=origin) == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_a_name_that_is_suddenly_this_machine_is_refused(host: str) -> None:
    with bind(host, 0) as listener:
        names = names_of(listener, host)
    for header, status in ((f"{host}:7860", 200), ("LocalHost:1", 200), ("elsewhere.example:7860", 400), ("[", 400)):
        assert ask("GET", "/", names=names, host=header) == status
    assert ask("GET", "/", names={"::1"}, host="[::1]:7860") == 200


def test_a_page_for_others_answers_to_any_name() -> None:
    with bind("0.0.0.0", 0) as listener:
        names = names_of(listener, "0.0.0.0")
    assert ask("POST", JOIN, PLAIN, names=names, host="laboratory:80", origin="http://laboratory:80") == 200
    assert ask("POST", JOIN, PLAIN, names=names, host="laboratory:80", origin="http://elsewhere.example") == 403
