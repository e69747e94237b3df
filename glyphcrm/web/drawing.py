"""A character drawn by hand to a picture as the atlas has them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glyphcrm.errors import UserError
from glyphcrm.glyphs.raster import IMAGE_SIZE

LONGEST_SIDE = 43  # pixels of ink; the median of the default font's Chinese characters
PEN = 3  # pixels, between the thin and the thick strokes of that font
SMALLEST = 0.2  # of the pad: smaller drawings stay small
MOST_POINTS = 20_000
LARGEST_MESSAGE = 1 << 20  # characters of JSON

_FINE = 8  # times as large while it is drawn
_INK_LEVEL = 128

Strokes = list[list[tuple[float, float]]]


def picture_of(drawing: str | None) -> NDArray[np.uint8]:
    """Return the picture of a drawing, ``(48, 48)`` uint8, ink 1, centred, its longer side that of printed characters.

    `drawing` is JSON, a list of strokes, each a list of points [x, y] with x to the right and y down, both from 0 to 1;
    None is one without strokes. Strokes get one width, however large the drawing was.

    Raises `UserError`: there is no stroke, or it is no such list, or one with more than 20,000 points.
    """
    strokes = _read(drawing or "[]")
    points = np.array([point for stroke in strokes for point in stroke])
    low, high = points.min(0), points.max(0)
    scale = (LONGEST_SIDE - PEN) / max(SMALLEST, *(high - low))
    image = Image.new("L", (IMAGE_SIZE * _FINE, IMAGE_SIZE * _FINE))
    draw, radius = ImageDraw.Draw(image), PEN * _FINE / 2
    for stroke in strokes:
        placed = (np.array(stroke) - (low + high) / 2) * scale * _FINE + IMAGE_SIZE * _FINE / 2
        line = [(float(x), float(y)) for x, y in placed]
        draw.line(line, 255, PEN * _FINE, joint="curve")
        for x, y in (line[0], line[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    small = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return (np.asarray(small) >= _INK_LEVEL).astype(np.uint8)


def _read(drawing: str) -> Strokes:
    if len(drawing) > LARGEST_MESSAGE:
        raise UserError("the drawing has too many points; clear it, and draw it with fewer strokes")
    try:
        strokes = [[_point(point) for point in stroke] for stroke in json.loads(drawing)]
    except (ArithmeticError, ValueError, TypeError, RecursionError):
        raise UserError("the drawing cannot be read; clear it, and draw it again") from None
    strokes = [stroke for stroke in strokes if stroke]
    if not strokes:
        raise UserError("the drawing is blank; draw a character with the mouse, a pen or a finger")
    if sum(map(len, strokes)) > MOST_POINTS:
        raise UserError(f"the drawing has more than {MOST_POINTS:,} points; clear it, and draw it with fewer strokes")
    return strokes


def _point(point: Any) -> tuple[float, float]:
    x, y = point
    if not (isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(x) and math.isfinite(y)):
        raise ValueError("no point")
    return min(max(float(x), 0.0), 1.0), min(max(float(y), 0.0), 1.0)
