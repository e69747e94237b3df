"""Fonts made to exhaust time or memory are refused in one line; others are drawn as in this process."""

from __future__ import annotations

import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glyphcrm.errors import UserError
from glyphcrm.glyphs import font_process
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.font_file import MOST_FACES, Font, read_font
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.glyphs.raster import Rasterizer
from tests.glyphs.font_files import (
    SQUARE,
    composites_file,
    endless_collection_file,
    font_file,
    inflating_file,
    subroutines_file,
)

FIRST_60 = "".join(map(chr, range(0x4E00, 0x4E3C)))
SECONDS = 30  # by the clock, on a machine that does other things, too


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a font a second or two."""
    monkeypatch.setattr(font_process, "READ_SECONDS", 2)
    monkeypatch.setattr(font_process, "DRAW_SECONDS", 1)
    monkeypatch.setattr(font_process, "TOKEN_SECONDS", 0)


def refused(spec: Path, tokens: str = "一") -> str:
    """Return the line with which a font is refused, and check that this process has grown and waited little."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        GlyphAtlas.build(tokens, [open_font(spec)])
    assert time.monotonic() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    assert str(caught.value).startswith(f"font {spec}: ") and str(caught.value).isprintable()
    return str(caught.value)


def test_a_file_that_inflates_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = inflating_file(tmp_path / "bomb.woff", 4608 << 20)
    assert path.stat().st_size < 8 << 20
    assert "more than 1024 MiB of memory" in refused(path)


def test_composites_that_multiply_are_refused(tmp_path: Path, short: None) -> None:
    assert "more than 1 seconds of processor time" in refused(composites_file(tmp_path / "c.ttf", 4, 24))


def test_subroutines_that_multiply_are_refused(tmp_path: Path, short: None) -> None:
    assert "more than 1 seconds of processor time" in refused(subroutines_file(tmp_path / "s.otf", 60, 9), FIRST_60)


def test_few_composites_and_subroutines_are_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has it without ink"):
        GlyphAtlas.build("一", [open_font(composites_file(tmp_path / "c.ttf", 4, 6))])
    font = open_font(subroutines_file(tmp_path / "s.otf", 3, 3))
    np.testing.assert_array_equal(GlyphAtlas.build("一", [font]).pictures(0), Rasterizer(font).draw("一"))


def test_collections_are_of_so_many_faces(tmp_path: Path) -> None:
    assert "a collection of 65,000 faces" in refused(endless_collection_file(tmp_path / "a.ttc", 65_000))
    assert f"a collection of {MOST_FACES}" in refused(endless_collection_file(tmp_path / "b.ttc", MOST_FACES))
    assert open_font(f"{tmp_path / 'b.ttc'}#1000").index == 1000


def test_a_font_is_read_and_drawn_as_in_this_process(noto: Font) -> None:
    elsewhere = open_font(noto.path)
    assert elsewhere == read_font(noto.path, None, 400)
    tokens = ["[UNK]", *map(chr, range(0x4E00, 0x4E00 + 600))]
    both = [GlyphAtlas.build(tokens, [font]) for font in (elsewhere, noto)]
    assert both[0].fonts == both[1].fonts
    np.testing.assert_array_equal(both[0].bitmaps, both[1].bitmaps)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "has crashed"),
        ("import os; os.close(1); os._exit(1)", "has crashed"),
        ("import sys; sys.stdin.read(); print('[', end='', flush=True); sys.exit(1)", "has crashed"),
        ("import time; time.sleep(60)", "takes more than 10 seconds"),
    ],
)
def test_a_process_that_dies_or_hangs_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, told: str
) -> None:
    font = open_font(font_file(tmp_path / "a.ttf", {"一": SQUARE}))
    with monkeypatch.context() as patch:
        patch.setattr(font_process, "_START", program)
        if "sleep" in program:
            patch.setattr(font_process, "CLOCK_FACTOR", 0.05)
        with pytest.raises(UserError, match=rf"a\.ttf.*{told}"):
            GlyphAtlas.build("一", [font])
    assert GlyphAtlas.build("一", [font]).bitmaps.any()


def test_an_interruption_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    font = open_font(font_file(tmp_path / "a.ttf", {"一": SQUARE}))
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            started.append(self)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    monkeypatch.setattr(font_process.json, "loads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        GlyphAtlas.build("一", [font])
    assert len(started) == 1 and started[0].returncode is not None
