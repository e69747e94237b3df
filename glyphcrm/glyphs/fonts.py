"""Fonts: which characters a font file covers, and the FreeType face that draws them.

Font files are untrusted. Whatever is wrong with one, `open_font` raises a `UserError`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageFont

from glyphcrm.errors import UserError

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

REGULAR_WEIGHT = 400
REFERENCE_PIXELS = 46  # to the em, at which characters are drawn
COLOUR_TABLES = ("CBDT", "COLR", "sbix", "SVG ")
_LINUX = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_MACOS = ("/Library/Fonts", "~/Library/Fonts")
_WINDOWS = ("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts")
SYSTEM_FONT_DIRECTORIES = tuple(map(Path, _LINUX + _MACOS + _WINDOWS))
SYSTEM_FONT_FILES = re.compile(r"(HanaMin|BabelStoneHan).*\.(ttf|otf)", re.IGNORECASE)
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Font:
    """One face of a font file."""

    path: Path
    index: int
    name: str  # "Family Style version", of a variable font with " wght=400" behind it
    coverage: frozenset[int] = field(repr=False)  # code points of its cmap
    axes: tuple[float, ...] = ()  # the value of each variation axis in the file's order
    system: bool = False  # it happened to be installed on this machine

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


def open_font(spec: str | os.PathLike[str], *, weight: float = REGULAR_WEIGHT) -> Font:
    """Open the font `spec`: a path, or "path.ttc#Family Name" for one face of a collection.

    `weight` is what the weight axis of a variable font is set to; a static font ignores it.

    Raises `UserError` for a file that is missing, truncated or no TrueType or OpenType font, for a
    colour font, a font without characters, a variable font without a weight axis or with `weight`
    outside of it, and for a collection without the name of one of its faces.
    """
    path, family = _split_spec(os.fspath(spec))
    if not path.is_file():
        raise UserError(f"font {path}: no such file; give the path of a .ttf, .otf or .ttc file")
    try:
        font = _read_font(path, family, weight)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"font {path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # fontTools raises anything from AssertionError to struct.error
        reason = _printable(str(error)) or type(error).__name__
        raise UserError(f"font {path}: truncated, or not a TrueType or OpenType font ({reason})") from error
    font.sized(REFERENCE_PIXELS)
    return font


@functools.cache
def default_font() -> Font:
    """Return Noto Serif SC Regular: Song style, all of U+4E00-9FFF and of Extension A."""
    try:
        directory = resources.files("pylopdf_fonts_zh_cn")
    except ModuleNotFoundError as error:
        raise UserError("the default font is not installed: pip install pylopdf-fonts-zh-cn==0.1.1") from error
    return open_font(str(directory / "NotoSerifSC-Regular.otf"))


def system_fonts() -> list[Font]:
    """Return the fonts of rare characters (HanaMin, BabelStone Han) that this machine has, by file name.

    Files that cannot be used are passed over: nobody asked for them.
    """
    files: dict[str, Path] = {}
    for directory in SYSTEM_FONT_DIRECTORIES:
        for folder, _, names in os.walk(directory.expanduser()):
            for name in filter(SYSTEM_FONT_FILES.fullmatch, names):
                files.setdefault(name, Path(folder, name))
    fonts = []
    for _, path in sorted(files.items()):
        with suppress(UserError):
            fonts.append(replace(open_font(path), system=True))
    return fonts


def font_chain(user_fonts: Sequence[Font] = ()) -> list[Font]:
    """Return the fonts in the order they are asked: the user's, the default, the system's."""
    return [*user_fonts, default_font(), *system_fonts()]


def _split_spec(spec: str) -> tuple[Path, str | None]:
    path, separator, family = spec.rpartition("#")
    if not separator or Path(spec).is_file():
        return Path(spec).expanduser(), None
    return Path(path).expanduser(), family.strip()


def _read_font(path: Path, family: str | None, weight: float) -> Font:
    with open(path, "rb") as file:
        is_collection = file.read(4) == b"ttcf"
    index = _find_face(path, family) if is_collection else 0
    with _open_face(path, index if is_collection else -1) as face:
        if family is not None and not is_collection and family.casefold() not in _names(face):
            raise UserError(f"font {path}: has no family {family!r}; it is {_full_name(face, path)!r}")
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


def _find_face(path: Path, family: str | None) -> int:
    """Return the index of the face called `family` in the collection `path`."""
    from fontTools.ttLib.sfnt import readTTCHeader

    with open(path, "rb") as file:
        count = readTTCHeader(file).numFonts
    if family is None and count == 1:
        return 0
    faces: list[tuple[str, set[str]]] = []
    for index in range(count):
        with _open_face(path, index) as face:
            faces.append((_family(face, path), _names(face)))
    matches = [i for i, (_, names) in enumerate(faces) if (family or "").casefold() in names]
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(dict.fromkeys(name for name, _ in faces))
    problem = "a collection of fonts" if family is None else f"{len(matches)} faces are called {family!r}"
    raise UserError(f"font {path}: {problem}; write {path.name}#NAME with one of: {listed}")


def _names(face: TTFont) -> set[str]:
    """Return the family names and full names of a face, in every language, for comparison."""
    table: Any = face["name"]
    return {record.toUnicode("replace").casefold() for record in table.names if record.nameID in (1, 4, 16)}


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
