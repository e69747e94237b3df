"""The page in a real browser, served by a real `glyphcrm web`; and how that process starts and ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glyphcrm.cli.entry import main

pytest.importorskip("gradio")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
# In the server's process: whatever connects to another machine is written down.
WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        where = arguments[1] if event == "socket.connect" else arguments[0]
        host = where[0] if isinstance(where, tuple) else where
        if host not in ("127.0.0.1", "localhost", "::1"):
            open({log!r}, "a").write(repr(host) + "\\n")
sys.addaudithook(watch)
"""


class Served:
    """A running `glyphcrm web`."""

    def __init__(self, *words: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glyphcrm", "web", "--port", "0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "page is at http://127.0.0.1:" in line, self.process.communicate()
        self.url = line.split()[4]

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; return the exit code and what stderr says."""
        self.process.send_signal(signal.SIGINT)
        _, error = self.process.communicate(timeout=20)
        return self.process.returncode, error


@pytest.fixture(scope="module")
def connections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where connections of the server to other machines are written down; and the hook that does it."""
    folder = tmp_path_factory.mktemp("watch")
    (folder / "sitecustomize.py").write_text(WATCH.format(log=str(folder / "log")))
    return folder / "log"


@pytest.fixture(scope="module")
def served(directories: dict[str, Path], connections: Path) -> Iterator[Served]:
    """The page of all models."""
    path = os.pathsep.join([str(connections.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = ["--model", str(directories["pretrained"]), "--task-model", str(directories["judge"])]
    words += [str(directories["names"]), "--bert", str(directories["bert"])]
    running = Served(*words, environment={"PYTHONPATH": path})
    yield running
    code, error = running.interrupt()
    assert (code, error.strip()) == (130, "interrupted")


@pytest.fixture(scope="module")
def requests() -> list[str]:
    """The addresses that the browser asked for."""
    return []


@pytest.fixture(scope="module")
def page(served: Served, requests: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in a browser with a profile of its own."""
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=BROWSER, args=[*SWITCHES], headless=True
        )
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.goto(served.url)
        page.wait_for_selector("#fill")
        yield page
        context.close()


def ask(page: Any, button: str, out: str) -> str:
    """Click a button, and return what is shown then."""
    results = f"{out} :is(table, figure, .message)"
    page.evaluate("results => document.querySelectorAll(results).forEach(old => old.className += ' old')", results)
    page.click(button)
    page.wait_for_selector(f"{results}:not(.old)")
    return str(page.inner_text(out))


def test_a_mask_is_filled(page: Any) -> None:
    page.locator("textarea:visible").fill("天地▢黄")
    shown = ask(page, "#fill", "#fill-out")
    assert page.locator("#fill-out tr").count() == 5 and shown.count("%") == 5
    assert page.locator("#fill-out .text").inner_text()[:2] == "天地"
    page.locator("textarea:visible").fill("天地")
    assert "has no [MASK] or ▢" in ask(page, "#fill", "#fill-out")


def test_a_text_of_a_million_characters_is_a_message(page: Any) -> None:
    page.evaluate(  # as a paste does it; typing would take an hour
        "box => { box.value = '天'.repeat(1e6); box.dispatchEvent(new Event('input', {bubbles: true})); }",
        page.locator("textarea:visible").element_handle(),
    )
    assert "1,000,000 characters; at most 2,000" in ask(page, "#fill", "#fill-out")
    page.locator("textarea:visible").fill("天▢")
    assert "%" in ask(page, "#fill", "#fill-out")


def test_a_drawing_has_neighbours(page: Any) -> None:
    page.get_by_role("tab", name="A character").click()
    page.get_by_label("A sentence").fill("天▢玄黄")
    assert ask(page, "#drawn", "#character-out").startswith("the drawing is blank")
    assert page.locator("#character-out .message").count() == 1
    box, mouse = page.locator("#pad canvas").bounding_box(), page.mouse
    for stroke in (((0.2, 0.5), (0.8, 0.5)), ((0.5, 0.2), (0.5, 0.8))):
        for step, (x, y) in enumerate(stroke):
            mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
            mouse.up() if step else mouse.down()
    shown = ask(page, "#drawn", "#character-out")
    assert page.locator("#character-out .tiles figure").count() == 10 and "U+" in shown
    assert page.locator("#character-out table tr").count() == 10
    middle = "[...document.querySelector('#pad canvas').getContext('2d').getImageData(144, 144, 1, 1).data]"
    assert page.evaluate(middle) == [0, 0, 0, 255]  # the drawing stays for the next look
    page.get_by_role("button", name="Clear").click()
    assert ask(page, "#drawn", "#character-out").startswith("the drawing is blank")


def test_the_other_tabs_answer(page: Any) -> None:
    page.get_by_role("tab", name="Judge").click()
    page.locator("textarea:visible").first.fill("天地玄黄")
    shown = ask(page, "#judge", "#judge-out")
    assert "good" in shown and "bad" in shown
    page.get_by_role("tab", name="Which strokes").click()
    page.locator("textarea:visible").fill("天▢")
    page.get_by_label("gradient").check()
    ask(page, "#heat", "#heat-out")
    assert page.locator("#heat-out figure img").count() == 2
    page.get_by_role("tab", name="Look-alike").click()
    page.locator("textarea:visible").fill("天地▢黄")
    shown = ask(page, "#attack", "#attack-out")
    assert "GlyphCRM" in shown and "BERT" in shown and page.locator("#attack-out .pairs figure").count() == 2


def test_no_other_machine_was_asked(page: Any, served: Served, requests: list[str], connections: Path) -> None:
    assert len(requests) > 10
    assert not [url for url in requests if not url.startswith((served.url, "data:", "blob:"))]
    assert not connections.exists(), connections.read_text()


def test_requests_are_bounded(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")

    def status(*headers: str, body: bytes = b"") -> int:
        """Return the answer's status; 0 if there is none."""
        head = "\r\n".join(["POST /gradio_api/queue/join HTTP/1.1", "Connection: close", *headers, "", ""])
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            with contextlib.suppress(OSError):  # it may end while more is sent
                connection.sendall(head.encode() + body)
            with contextlib.suppress(OSError):
                return int(connection.recv(1000).split()[1] or 0)
        return 0

    here = f"Host: {host}:{port}"
    assert status(here, f"Content-Length: {9 << 20}") == 413
    assert status(here, "Content-Length: nonsense") in (400, 413)
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    assert status(here, "Transfer-Encoding: chunked", body=chunk * 9 + b"0\r\n\r\n") in (0, 400, 413, 500)
    assert status("Host: elsewhere.example", "Content-Length: 0") == 400
    with urllib.request.urlopen(served.url, timeout=20) as answer:
        assert answer.status == 200


def test_no_file_of_the_machine_is_read(served: Served, tmp_path: Path) -> None:
    """Gradio copies a file that it is told of as an object, says where to, and serves the copy."""
    (tmp_path / "secret").write_text("nobody's business")

    def ask(path: str, body: object = None, **headers: str) -> int:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{served.url}/gradio_api/{path}", data, {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    file = {"path": str(tmp_path / "secret"), "orig_name": "天▢", "meta": {"_type": "gradio.FileData"}}
    asked = {"data": [file], "fn_index": 1, "session_hash": "thief"}
    assert ask("queue/join", asked) == 422
    assert ask("queue/join", asked | {"data": ["天▢"]}, Origin="http://elsewhere.example") == 403
    assert ask("queue/join", asked | {"data": ["天▢"]}, Origin=served.url) == 200
    for route in ("file=/etc/hostname", "proxy=http://elsewhere.example", "openapi.json", "vibe-code"):
        assert ask(route) == 404


def test_what_is_wrong_at_the_start_is_one_line(
    directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["web", "--model", str(directories["pretrained"]), "--port", port]) == 2
    assert capsys.readouterr() == ("", f"error: port {port} of 127.0.0.1 is taken; give another --port\n")
    for host in ("a..b", "x" * 70):
        assert main(["web", "--model", str(directories["pretrained"]), "--host", host]) == 2
        assert re.fullmatch(rf"error: --host {host}, --port 7860: .*; give others\n", capsys.readouterr().err)
    assert main(["web", "--model", str(tmp_path / "nowhere"), "--port", "0"]) == 2
    said = capsys.readouterr()
    assert not said.out and "no config.json there" in said.err and said.err.count("\n") == 1


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["web", "--model", "anything"]) == 2
    assert capsys.readouterr().err == 'error: the page needs Gradio: pip install "glyphcrm[web]"\n'
