"""A contact sheet: the pictures of some characters side by side, as the model sees them."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.raster import IMAGE_SIZE

MOST_CHARACTERS = 4096
MISSING_LABEL = "no picture"

_SCALE = 2
_PICTURE = IMAGE_SIZE * _SCALE
_GAP = 14
_CAPTION = 22
_COLUMNS = 12
_LEAST_WIDTH = 360  # of a sheet with the names of fonts
_FACE = ImageFont.load_default(13)
_PAPER = "#f4f2ee"
_CELL = "#ffffff"
_BORDER = "#d5d0c7"
_INK = "#141414"
_CAPTION_INK = "#6b665e"
_PALE_INK = "#c3bdb2"
_MISSING_CELL = "#fbe9e7"
_MISSING_INK = "#b3261e"


def contact_sheet(text: Iterable[str], own: GlyphAtlas, others: Mapping[str, GlyphAtlas] | None = None) -> Image.Image:
    """Return as an RGB image the pictures of the distinct tokens of `text`, in order, with their code points below.

    `others`, by the names of their fonts, are made of `own` by `GlyphAtlas.redrawn`. With them there is a row for each
    font, under its name, `own` first; a picture that a font lacks, so that it is that of `own`, is pale. A token that
    `own` lacks gets a red, crossed cell. Raises `UserError` for no tokens or more than 4,096.
    """
    tokens = list(dict.fromkeys(text))
    if not 1 <= len(tokens) <= MOST_CHARACTERS:
        raise UserError(f"a contact sheet shows 1 to {MOST_CHARACTERS} distinct characters, not {len(tokens)}")
    fonts, heading, least = {"": own}, 0, 0
    if others:
        fonts = {", ".join(dict.fromkeys(own.fonts[i] for i in own.sources)): own, **others}
        heading, least = _CAPTION, _LEAST_WIDTH
    columns = min(len(tokens), max(_COLUMNS, math.isqrt(len(tokens))))
    pitch, row_height = _PICTURE + _GAP, heading + _PICTURE + _GAP // 2
    height = len(fonts) * row_height + _CAPTION + _GAP  # of the rows of one block of columns
    size = (max(columns * pitch + _GAP, least), -(-len(tokens) // columns) * height + _GAP)
    draw = ImageDraw.Draw(sheet := Image.new("RGB", size, _PAPER))
    for first in range(0, len(tokens), columns):
        y = _GAP + first // columns * height
        places = [(_GAP + i * pitch, token) for i, token in enumerate(tokens[first : first + columns])]
        for name, atlas in fonts.items():
            draw.text((_GAP, y), name, _CAPTION_INK, _FACE)
            for x, token in places:
                row = atlas.rows.get(token)
                is_own = row is None or atlas is own or atlas.fonts[atlas.sources[row]] == name
                _draw_picture(draw, x, y + heading, atlas, token, _INK if is_own else _PALE_INK)
            y += row_height
        for x, token in places:
            _draw_caption(draw, x, y - _GAP // 2, token, is_missing=token not in own.rows)
    return sheet


def _draw_picture(draw: ImageDraw.ImageDraw, x: int, y: int, atlas: GlyphAtlas, token: str, ink: str) -> None:
    row = atlas.rows.get(token)
    frame = (x - 1, y - 1, x + _PICTURE, y + _PICTURE)
    if row is not None:
        draw.rectangle(frame, _CELL, _BORDER)
        picture = Image.fromarray(atlas.pictures(row) * 255).resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST)
        draw.bitmap((x, y), picture, ink)
        return
    draw.rectangle(frame, _MISSING_CELL, _MISSING_INK)
    draw.line((x, y, x + _PICTURE - 1, y + _PICTURE - 1), _MISSING_INK)
    draw.line((x, y + _PICTURE - 1, x + _PICTURE - 1, y), _MISSING_INK)
    middle = (x + _PICTURE // 2, y + _PICTURE // 2)
    left, top, right, bottom = draw.textbbox(middle, MISSING_LABEL, _FACE, "mm")
    draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), _MISSING_CELL)
    draw.text(middle, MISSING_LABEL, _MISSING_INK, _FACE, "mm")


def _draw_caption(draw: ImageDraw.ImageDraw, x: int, y: int, token: str, is_missing: bool) -> None:
    caption = f"U+{ord(token):04X}" if len(token) == 1 else token
    ink = _MISSING_INK if is_missing else _CAPTION_INK
    draw.text((x + _PICTURE // 2, y + 5), caption, ink, _FACE, "mt")


def save_sheet(sheet: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a contact sheet to `path`, a PNG file. Raises `UserError` when it cannot be written."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: a contact sheet is a PNG image; give a name that ends in .png")
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    write_atomically(path, content.getvalue())
