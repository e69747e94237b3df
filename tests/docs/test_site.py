"""The site as a browser gets it: nothing comes from elsewhere, and what it points at is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests.docs.pages import ROOT

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """Ids, links, and what is loaded with a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif (tag, name) in LOADED and value and ("rel", "canonical") not in attrs:
                self.loaded.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as by `make docs`."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 15
    return found


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    loaded = [url for page in pages.values() for url in page.loaded]
    styles = [style.read_text(encoding="utf-8") for style in site.rglob("*.css")]
    loaded += [url for style in styles for url in re.findall(r"(?:url\(|@import )[\"']?([^\"')\s]+)", style)]
    assert len(loaded) > 100
    assert not [url for url in loaded if re.match(r"(https?:)?//", url)]


def targets(path: Path, page: Page) -> Iterator[tuple[str, Path, str]]:
    """Yield the links to and the files of the site itself: as written, the file, the anchor."""
    for url in page.links + page.loaded:
        if not re.match(r"[a-z]+:", url):
            place, anchor = urldefrag(url)
            target = (path.parent / unquote(place)).resolve() if place else path
            yield url, target / "index.html" if target.is_dir() else target, unquote(anchor)


def test_what_it_points_at_is_there(pages: dict[Path, Page]) -> None:
    """Also what mkdocs does not check: HTML in pages, menus, the reference."""
    dead = [
        f"{path.parent.name}: {url}"
        for path, page in pages.items()
        for url, target, anchor in targets(path, page)
        if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids)
    ]
    assert not dead


def test_every_public_name_is_in_the_reference(pages: dict[Path, Page]) -> None:
    import glyphcrm_kernels

    from glyphcrm import modeling

    ids = set().union(*(page.ids for path, page in pages.items() if path.parent.parent.name == "api"))
    names = {f"{package.__name__}.{name}" for package in (glyphcrm_kernels, modeling) for name in package.__all__}
    assert names - ids == {"glyphcrm_kernels.BACKENDS"}
