"""Real font files of a few glyphs, made for the tests."""

from __future__ import annotations

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, newTable
from fontTools.ttLib.tables.TupleVariation import TupleVariation

Box = tuple[int, int, int, int]
SQUARE: Box = (100, 0, 900, 800)


def font_file(
    path: Path,
    boxes: dict[str, Box],
    *,
    family: str = "Made Up",
    axes: tuple[tuple[str, float, float, float], ...] = (),
    table: str | None = None,
) -> Path:
    """Write a TrueType font whose glyphs are the boxes (left, bottom, right, top), 1000 units to the em.

    `axes`: tag, least, default, greatest; along "wght" the right edge moves by 300. `table`: an extra one.
    """
    names = {char: f"u{ord(char):04X}" for char in boxes}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({ord(char): name for char, name in names.items()})
    glyphs = {name: _box(boxes[char]) for char, name in names.items()}
    builder.setupGlyf({".notdef": _box(SQUARE), **glyphs})
    bearings = {".notdef": SQUARE[0], **{name: boxes[char][0] for char, name in names.items()}}
    builder.setupHorizontalMetrics({name: (1000, left) for name, left in bearings.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular", "version": "Version 1.500"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    if axes:
        builder.setupFvar([(*axis, axis[0]) for axis in axes], [])
        deltas = [(0, 0), (0, 0), (300, 0), (300, 0), *[(0, 0)] * 4]
        heavier = [TupleVariation({"wght": (0, 1, 1)}, deltas)]
        builder.setupGvar({name: heavier if "wght" in {a[0] for a in axes} else [] for name in names.values()})
    if table is not None:
        builder.font[table] = newTable("DSIG")
        builder.font[table].tableTag = table
        builder.font[table].compile = lambda _: bytes(16)
    builder.save(path)
    return path


def collection_file(path: Path, members: list[Path]) -> Path:
    """Write a collection of font files."""
    from fontTools.ttLib import TTFont

    collection = TTCollection()
    collection.fonts = [TTFont(member) for member in members]
    collection.save(path)
    return path


def _box(box: Box):
    left, bottom, right, top = box
    pen = TTGlyphPen(None)
    pen.moveTo((left, bottom))
    for point in ((left, top), (right, top), (right, bottom)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()
