"""Fonts made to exhaust time or memory are refused in one line; others are drawn as in this process."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from pathlib import Path

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


def test_a_process_that_dies_is_told_of_and_replaced(tmp_path: Path) -> None:
    path = font_file(tmp_path / "a.ttf", {"一": SQUARE})
    font = open_font(path)
    process = font_process._process
    assert process is not None
    os.kill(process.child.pid, signal.SIGSTOP)
    threading.Timer(0.5, process.child.kill).start()
    with pytest.raises(UserError, match=r"a\.ttf.*has crashed"):
        GlyphAtlas.build("一", [font])
    assert GlyphAtlas.build("一", [font]).bitmaps.any()
    replaced = font_process._process
    assert replaced is not None
    font_process.stop()
    assert replaced.child.returncode == 0


def test_a_process_that_hangs_is_ended_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    font = open_font(font_file(tmp_path / "a.ttf", {"一": SQUARE}))
    process = font_process._process
    assert process is not None
    monkeypatch.setattr(font_process, "CLOCK_FACTOR", 0.01)
    os.kill(process.child.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match="takes more than 10 seconds"):
        GlyphAtlas.build("一", [font])


def test_an_interruption_leaves_no_reply_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = [open_font(font_file(tmp_path / f"{c}.ttf", {c: SQUARE})) for c in "一二"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(font_process.json, "loads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            GlyphAtlas.build("一", fonts)
    assert GlyphAtlas.build("二", fonts).bitmaps.any()
