"""Real font files of a few glyphs, made for the tests."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path

from fontTools import subset
from fontTools.fontBuilder import FontBuilder
from fontTools.misc.psCharStrings import T2CharString
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont, newTable
from fontTools.ttLib.tables._g_l_y_f import Glyph, GlyphComponent
from fontTools.ttLib.tables.TupleVariation import TupleVariation

from glyphcrm.glyphs.fonts import default_font

Box = tuple[int, int, int, int]
SQUARE: Box = (100, 0, 900, 800)


def part_of_default_font(path: Path, characters: str) -> Path:
    """Write the default font with these characters, and those of ASCII, alone: all of it takes seconds to draw."""
    options = subset.Options(layout_features=[], name_IDs=["*"])
    font = subset.load_font(str(default_font().path), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=characters + "".join(map(chr, range(32, 127))))
    subsetter.subset(font)
    path.parent.mkdir(parents=True, exist_ok=True)
    font.save(path)
    return path


def font_file(
    path: Path,
    boxes: dict[str, Box | None],
    *,
    family: str = "Made Up",
    style: str = "Regular",
    axes: tuple[tuple[str, float, float, float], ...] = (),
    table: str | None = None,
) -> Path:
    """Write a TrueType font whose glyphs are the boxes (left, bottom, right, top), 1000 units to the em; None: no ink.

    `axes`: tag, least, default, greatest; along "wght" the right edge moves by 300. `table`: an extra one.
    """
    names = {char: f"u{ord(char):04X}" for char in boxes}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({ord(char): name for char, name in names.items()})
    glyphs = {name: _box(boxes[char]) for char, name in names.items()}
    builder.setupGlyf({".notdef": _box(SQUARE), **glyphs})
    bearings = {".notdef": SQUARE[0], **{name: (boxes[char] or SQUARE)[0] for char, name in names.items()}}
    builder.setupHorizontalMetrics({name: (1000, left) for name, left in bearings.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": style, "version": "Version 1.500"})
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
    collection = TTCollection()
    collection.fonts = [TTFont(member) for member in members]
    collection.save(path)
    return path


def _box(box: Box | None):
    pen = TTGlyphPen(None)
    if box is None:
        return pen.glyph()
    left, bottom, right, top = box
    pen.moveTo((left, bottom))
    for point in ((left, top), (right, top), (right, bottom)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def composites_file(path: Path, parts: int, depth: int) -> Path:
    """Write a font whose "一" has `parts` components, each of as many, and so on for `depth` levels, and no ink."""
    chars = [chr(0x4E00 + i) for i in range(depth + 1)]
    font = TTFont(font_file(path, dict.fromkeys(chars)), recalcBBoxes=False)
    font["maxp"].maxComponentDepth = depth + 1
    names = font.getGlyphOrder()[1:]
    for whole, part in itertools.pairwise(names):
        glyph = font["glyf"][whole] = Glyph()
        glyph.numberOfContours = -1
        glyph.xMin = glyph.yMin = glyph.xMax = glyph.yMax = 0
        glyph.components = [GlyphComponent() for _ in range(parts)]
        for component in glyph.components:
            component.glyphName, component.x, component.y, component.flags = part, 0, 0, 0
    font.save(path)
    return path


def subroutines_file(path: Path, calls: int, depth: int) -> Path:
    """Write a font in CFF whose characters, 60 from "一" on, call a subroutine that calls another `calls` times..."""
    builder = FontBuilder(1000, isTTF=False)
    builder.font.recalcBBoxes = False  # which would take as long
    names = [f"glyph{i}" for i in range(60)]  # FreeType gives up each after some time
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({0x4E00 + i: name for i, name in enumerate(names)})
    bias, subroutines = 107, [T2CharString(program=["return"])]
    for i in range(depth):
        subroutines.append(T2CharString(program=[i - bias, "callgsubr"] * calls + ["return"]))
    square = [100, 0, "rmoveto", 800, "hlineto", 800, "vlineto", -800, "hlineto"]
    last = T2CharString(program=[*square, depth - bias, "callgsubr", "endchar"])
    builder.setupCFF("MadeUp", {}, {".notdef": T2CharString(program=["endchar"]), **dict.fromkeys(names, last)}, {})
    builder.font["CFF "].cff.GlobalSubrs.items = subroutines
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names), (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Made Up", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def inflating_file(path: Path, size: int) -> Path:
    """Write a WOFF whose table "name" becomes `size` bytes (a multiple of 16 MiB) of zeros."""
    font = TTFont(font_file(path, {"一": SQUARE}))
    tables = {tag: bytes(font.reader[tag]) for tag in font.reader.keys()}  # noqa: SIM118
    step = 1 << 24
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(step)) + deflate.flush(zlib.Z_FULL_FLUSH)  # which may follow itself
    checksum = struct.pack(">HH", size % 65521, 1)
    bomb = b"\x78\xda" + block * (size // step) + b"\x03\x00" + checksum
    entries, body, start = b"", b"", 44 + 20 * len(tables)
    for tag, content in sorted(tables.items()):
        stored, original = (bomb, size % (1 << 32)) if tag == "name" else (content, len(content))
        entries += tag.encode() + struct.pack(">4I", start + len(body), len(stored), original, 0)
        body += stored + bytes(-len(stored) % 4)
    head = struct.pack(">4sIIHHIHHIIIII", b"wOFF", 0x10000, start + len(body), len(tables), 0, 1 << 20, *[0] * 7)
    path.write_bytes(head + entries + body)
    return path


def endless_collection_file(path: Path, faces: int) -> Path:
    """Write a collection that names one face `faces` times."""
    face = font_file(path, {"一": SQUARE}).read_bytes()
    start = 12 + 4 * faces
    moved = bytearray(face)
    for i in range(moved[5]):
        at = 12 + 16 * i + 8
        moved[at : at + 4] = struct.pack(">I", struct.unpack(">I", moved[at : at + 4])[0] + start)
    head = struct.pack(">4sII", b"ttcf", 0x10000, faces) + struct.pack(">I", start) * faces
    path.write_bytes(head + moved + bytes(32 * faces))  # FreeType wants so many bytes a face
    return path
