"""A font file: which characters it covers, and the FreeType face that draws them.

Font files are untrusted. Whatever is wrong with one, `read_font` raises a `UserError`; how long it takes and how much
memory is not bounded here, but by `glyphcrm.glyphs.font_process`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageFont

from glyphcrm.errors import SHOWN_CHARACTERS, UserError, listed, shown

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

REFERENCE_PIXELS = 46  # to the em, at which characters are drawn
COLOUR_TABLES = ("CBDT", "COLR", "sbix", "SVG ")
MOST_FACES = 1024  # of a collection; the largest that are published have some hundred
_LONGEST_NAME = 100
_FULL_NAMES, _FAMILY_NAMES = (4,), (1, 16)  # name IDs


@dataclass(frozen=True)
class Font:
    """One face of a font file."""

    path: Path
    index: int
    name: str  # "Family Style version", of a variable font with " wght=400" behind it
    coverage: frozenset[int] = field(repr=False)  # code points of its cmap
    axes: tuple[float, ...] = ()  # the value of each variation axis in the file's order
    system: bool = False  # it happened to be installed on this machine
    bundled: bool = False  # it comes with a package that this one installs, and is trusted

    def covers(self, char: str) -> bool:
        """Whether the font maps the one code point `char` to a glyph."""
        return ord(char) in self.coverage

    def sized(self, pixels: int) -> ImageFont.FreeTypeFont:
        """Return the face at `pixels` to the em, without complex layout; raise `UserError` if it cannot be read."""
        try:
            # Not `ImageFont.truetype`: when a file is bad, that opens a system font of the same name.
            face = ImageFont.FreeTypeFont(str(self.path), pixels, self.index, layout_engine=ImageFont.Layout.BASIC)
            if self.axes:
                face.set_variation_by_axes(list(self.axes))
        except (OSError, ValueError, NotImplementedError) as error:
            raise UserError(f"font {self.path}: FreeType cannot read it ({error})") from error
        return face


def read_font(path: Path, face: str | None, weight: float) -> Font:
    """Read the font file `path`; of a collection `face` says which: by name, or by number from 0.

    Raises `UserError` as `glyphcrm.glyphs.fonts.open_font` says.
    """
    try:
        font = _read_font(path, face, weight)
    except (UserError, MemoryError):
        raise
    except PermissionError as error:
        raise UserError(f"font {path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # fontTools raises anything from AssertionError to struct.error
        reason = _printable(str(error)) or type(error).__name__
        raise UserError(f"font {path}: truncated, or not a TrueType or OpenType font ({reason})") from error
    font.sized(REFERENCE_PIXELS)
    return font


def _read_font(path: Path, wanted: str | None, weight: float) -> Font:
    with open(path, "rb") as file:
        is_collection = file.read(4) == b"ttcf"
    index = _find_face(path, wanted) if is_collection else 0
    with _open_face(path, index if is_collection else -1) as face:
        if wanted is not None and not is_collection and not _called([_FaceNames.of(face)], wanted):
            raise UserError(f"font {path}: has no family {shown(wanted)}; it is {shown(_full_name(face, path))}")
        colours = [table.strip() for table in COLOUR_TABLES if table in face]
        if colours:
            raise UserError(f"font {path}: a colour font (table {', '.join(colours)}); give one with outlines only")
        axes = _variation_axes(face, path, weight)
        coverage = _coverage(face)
        if not coverage:
            raise UserError(f"font {path}: has no Unicode characters; give a font that draws some")
        name = _full_name(face, path)
    if axes:
        name = f"{name} wght={weight:g}"
    return Font(path.absolute(), index, name, coverage, axes)


def _open_face(path: Path, index: int) -> TTFont:
    from fontTools.ttLib import TTFont  # slow to import, and drawing does not need it

    face = TTFont(path, fontNumber=index, lazy=True)
    size = path.stat().st_size
    for tag, entry in face.reader.tables.items():
        if entry.offset + entry.length > size:
            raise UserError(f"font {path}: truncated, table {tag} reaches beyond the file's {size} bytes")
    return face


def _find_face(path: Path, wanted: str | None) -> int:
    """Return the index of the face of the collection `path` that has the name, or else the number, `wanted`."""
    from fontTools.ttLib.sfnt import readTTCHeader

    with open(path, "rb") as file:
        count = readTTCHeader(file).numFonts
    if count > MOST_FACES:
        raise UserError(f"font {path}: a collection of {count:,} faces, over {MOST_FACES:,}; give a font of its own")
    if wanted is None and count == 1:
        return 0
    faces: list[_FaceNames] = []
    for index in range(count):
        with _open_face(path, index) as face:
            faces.append(_FaceNames.of(face))
    matches = _called(faces, wanted) if wanted is not None else []
    if len(matches) == 1:
        return matches[0]
    if not matches and wanted is not None and wanted.isdecimal() and int(wanted) < count:
        return int(wanted)
    problem = f"a collection of {count}" if wanted is None else f"{len(matches)} faces are called {shown(wanted)}"
    raise UserError(f"font {path}: {problem}; write {path.name}#NAME with one of: {listed(_selectors(faces))}")


@dataclass(frozen=True)
class _FaceNames:
    """What a face of a collection is called, in every language, for comparison; and the names to show."""

    full: frozenset[str]
    family: frozenset[str]
    shown: tuple[str, ...]

    @classmethod
    def of(cls, face: TTFont) -> _FaceNames:
        table: Any = face["name"]
        full, family = (
            frozenset(r.toUnicode("replace").strip().casefold() for r in table.names if r.nameID in kinds)
            for kinds in (_FULL_NAMES, _FAMILY_NAMES)
        )
        best, style = ((name or "").strip() for name in (table.getBestFamilyName(), table.getBestSubFamilyName()))
        with_style = f"{best} {style}"
        return cls(full | {with_style.casefold()}, family, (_printable(best), _printable(with_style)))


def _called(faces: list[_FaceNames], name: str) -> list[int]:
    """Return the indices of the faces of this full name or, if there are none, of this family."""
    # A regular face's full name is often that of the whole family.
    name = name.casefold()
    full = [i for i, names in enumerate(faces) if name in names.full]
    return full or [i for i, names in enumerate(faces) if name in names.family]


def _selectors(faces: list[_FaceNames]) -> list[str]:
    """Return for each face what `_find_face` finds it by: its family, its full name, or its number."""
    return [
        next(
            (n for n in names.shown if len(n) <= SHOWN_CHARACTERS and "#" not in n and _called(faces, n) == [index]),
            str(index),
        )
        for index, names in enumerate(faces)
    ]


def _family(face: TTFont, path: Path) -> str:
    table: Any = face["name"]
    return _printable(table.getBestFamilyName() or "") or _printable(path.stem)


def _full_name(face: TTFont, path: Path) -> str:
    if "name" not in face:
        return _printable(path.stem)
    table: Any = face["name"]
    version = re.search(r"\d+\.\d+", table.getDebugName(5) or "")
    parts = (_family(face, path), table.getBestSubFamilyName() or "", version[0] if version else "")
    return _printable(" ".join(filter(None, parts)))


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())[:_LONGEST_NAME]


def _variation_axes(face: TTFont, path: Path, weight: float) -> tuple[float, ...]:
    if "fvar" not in face:
        return ()
    axes: Any = face["fvar"].axes
    scale = next((axis for axis in axes if axis.axisTag == "wght"), None)
    if scale is None:
        tags = ", ".join(_printable(axis.axisTag) for axis in axes) or "none"
        raise UserError(f"font {path}: a variable font without a weight axis (axes: {tags}); give a static font")
    if not scale.minValue <= weight <= scale.maxValue:
        bounds = f"from {scale.minValue:g} to {scale.maxValue:g}"
        raise UserError(f"font {path}: weight {weight:g} is outside its axis; give one {bounds}")
    return tuple(float(weight if axis.axisTag == "wght" else axis.defaultValue) for axis in axes)


def _coverage(face: TTFont) -> frozenset[int]:
    """Return the code points that the cmap maps to a glyph that exists and is not glyph 0, "missing"."""
    # Numbers for glyph names: the real ones take the whole CFF table to read.
    names = [str(glyph) for glyph in range(face["maxp"].numGlyphs)]
    face.setGlyphOrder(names)
    cmap = face.getBestCmap() or {}
    drawn = set(names[1:])
    return frozenset(point for point, glyph in cmap.items() if glyph in drawn and 0 <= point <= 0x10FFFF)
