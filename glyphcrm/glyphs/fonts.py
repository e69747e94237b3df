"""Where fonts come from: the user, the default one, and those that this machine happens to have."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path

from glyphcrm.errors import UserError
from glyphcrm.files import file_digest
from glyphcrm.glyphs.font_file import Font, read_font
from glyphcrm.glyphs.font_process import read_font_within_bounds

REGULAR_WEIGHT = 400
_LINUX = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_MACOS = ("/Library/Fonts", "~/Library/Fonts")
_WINDOWS = ("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts")
SYSTEM_FONT_DIRECTORIES = tuple(map(Path, _LINUX + _MACOS + _WINDOWS))
SYSTEM_FONT_FILES = re.compile(r"(HanaMin|BabelStoneHan).*\.(ttf|otf)", re.IGNORECASE)


def open_font(spec: str | os.PathLike[str], *, weight: float = REGULAR_WEIGHT) -> Font:
    """Open the font `spec`: a path, or "path.ttc#NAME" for one face of a collection.

    NAME is the face's full name, its family if that has one face there, or its number from 0. `weight` is what the
    weight axis of a variable font is set to; a static font ignores it. The file is read by another process, within
    bounds (`glyphcrm.glyphs.font_process`).

    Raises `UserError` for a file that is missing, truncated or no TrueType or OpenType font, for a
    colour font, a font without characters, a variable font without a weight axis or with `weight`
    outside of it, for a collection without the name of one of its faces or of more than 1,024, and for a font that
    takes more time or memory than a font may.
    """
    path, face = split_spec(os.fspath(spec))
    if not path.is_file():
        raise UserError(f"font {path}: no such file; give the path of a .ttf, .otf or .ttc file")
    return read_font_within_bounds(path, face, weight)


@functools.cache
def default_font() -> Font:
    """Return Noto Serif SC Regular: Song style, all of U+4E00-9FFF and of Extension A."""
    try:
        directory = resources.files("pylopdf_fonts_zh_cn")
    except ModuleNotFoundError as error:
        raise UserError("the default font is not installed: pip install pylopdf-fonts-zh-cn==0.1.1") from error
    return replace(read_font(Path(str(directory / "NotoSerifSC-Regular.otf")), None, REGULAR_WEIGHT), bundled=True)


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


def font_digests(fonts: Sequence[Font]) -> list[str]:
    """Return the SHA-256 of each font's file; raise `UserError` if it cannot be read."""
    return [file_digest(font.path) for font in fonts]


def split_spec(spec: str) -> tuple[Path, str | None]:
    """Return the file of a font that `open_font` is given, and the face of a collection."""
    path, separator, face = spec.rpartition("#")
    if not separator or Path(spec).is_file():
        return Path(spec).expanduser(), None
    return Path(path).expanduser(), face.strip()
