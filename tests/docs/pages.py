"""The pages that are tested, taken apart: code blocks, links, headings, and what is in backticks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "checkpoints/glyphcrm-tiny/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"^\s*```(?P<language>\S*)")
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<title>.+)$")
_INLINE_CODE = re.compile(r"`(?P<code>[^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, the line of its fence (from 1), its language ("" if it has none), its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Return ``page:line``."""
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Return the path of a page within the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page; one that is not closed is an `AssertionError`."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif opened is None:
            opened, lines = (number, fence["language"]), []
        else:
            found.append(Block(page, *opened, "\n".join(lines) + "\n"))
            opened = None
    assert opened is None, f"{name_of(page)}:{opened}: a block that is not closed"
    return found


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines outside of fenced blocks, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, line


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = (match["title"] for _, line in prose(page) if (match := _HEADING.match(line)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the targets of all links and pictures, with the number of the line."""
    for number, line in prose(page):
        for match in _LINK.finditer(line):
            yield number, match["target"]


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """Yield what is in backticks, with the number of the line."""
    for number, line in prose(page):
        for match in _INLINE_CODE.finditer(line):
            yield number, match["code"]
