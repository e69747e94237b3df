"""A contact sheet: the pictures of some characters side by side, as the model sees them."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
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
_PAPER = "#f4f2ee"
_CELL = "#ffffff"
_BORDER = "#d5d0c7"
_INK = "#141414"
_CAPTION_INK = "#6b665e"
_MISSING_CELL = "#fbe9e7"
_MISSING_INK = "#b3261e"


def contact_sheet(text: Iterable[str], atlas: GlyphAtlas) -> Image.Image:
    """Return as an RGB image the pictures of the distinct tokens of `text`, in order, with their code points below.

    A token that the atlas lacks gets a red, crossed cell. Raises `UserError` for no tokens or more than 4,096.
    """
    tokens = list(dict.fromkeys(text))
    if not 1 <= len(tokens) <= MOST_CHARACTERS:
        raise UserError(f"a contact sheet shows 1 to {MOST_CHARACTERS} distinct characters, not {len(tokens)}")
    columns = min(len(tokens), max(_COLUMNS, math.isqrt(len(tokens))))
    pitch_x, pitch_y = _PICTURE + _GAP, _PICTURE + _CAPTION + _GAP
    size = (columns * pitch_x + _GAP, -(-len(tokens) // columns) * pitch_y + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    face = ImageFont.load_default(13)
    for i, token in enumerate(tokens):
        x, y = _GAP + i % columns * pitch_x, _GAP + i // columns * pitch_y
        row = atlas.rows.get(token)
        frame = (x - 1, y - 1, x + _PICTURE, y + _PICTURE)
        if row is None:
            draw.rectangle(frame, _MISSING_CELL, _MISSING_INK)
            draw.line((x, y, x + _PICTURE - 1, y + _PICTURE - 1), _MISSING_INK)
            draw.line((x, y + _PICTURE - 1, x + _PICTURE - 1, y), _MISSING_INK)
            middle = (x + _PICTURE // 2, y + _PICTURE // 2)
            left, top, right, bottom = draw.textbbox(middle, MISSING_LABEL, face, "mm")
            draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), _MISSING_CELL)
            draw.text(middle, MISSING_LABEL, _MISSING_INK, face, "mm")
        else:
            draw.rectangle(frame, _CELL, _BORDER)
            picture = Image.fromarray(atlas.pictures(row) * 255).resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST)
            draw.bitmap((x, y), picture, _INK)
        caption = f"U+{ord(token):04X}" if len(token) == 1 else token
        ink = _MISSING_INK if row is None else _CAPTION_INK
        draw.text((x + _PICTURE // 2, y + _PICTURE + 5), caption, ink, face, "mt")
    return sheet


def save_sheet(sheet: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a contact sheet to `path`, a PNG file. Raises `UserError` when it cannot be written."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: a contact sheet is a PNG image; give a name that ends in .png")
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    write_atomically(path, content.getvalue())
