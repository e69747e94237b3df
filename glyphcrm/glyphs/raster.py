"""Characters as 48x48 binary pictures.

A character stands on the font's baseline, as in print, so that "." and "·" differ by their height. The
baseline is put where Han characters come out centred in the cell.
"""

from __future__ import annotations

import functools
import math
import statistics
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glyphcrm.errors import UserError
from glyphcrm.glyphs.font_file import REFERENCE_PIXELS, Font
from glyphcrm.glyphs.han import is_han

IMAGE_SIZE = 48  # pixels a side
PACKED_BYTES = IMAGE_SIZE * IMAGE_SIZE // 8  # of a bitmap
BLANK_LABEL = "[PAD]"

_PROBES = 64
_CENTRE = IMAGE_SIZE // 2
_MARGINS = (56, 448, 1792)  # around a glyph's origin; the next is for ink that reaches the border, or hides
_LABEL_PIXELS = 26
_LABEL_WIDTH = IMAGE_SIZE - 2

Box = tuple[int, int, int, int]


class Rasterizer:
    """Draws the characters of one font."""

    def __init__(self, font: Font) -> None:
        self.font = font
        self._face = functools.cache(font.sized)

    @functools.cached_property
    def baseline(self) -> int:
        """The row of the cell on which characters stand: the one that centres the ink of Han characters.

        Measured on 64 characters spread over the font's Han, or over all of it when it has no Han.
        """
        points = sorted(filter(is_han, self.font.coverage)) or sorted(self.font.coverage)
        centres = []
        for point in points[:: math.ceil(len(points) / _PROBES)]:
            with suppress(UserError):  # told when that character is drawn
                _, box = self._ink(chr(point), REFERENCE_PIXELS)
                if box is not None:
                    centres.append((box[1] + box[3]) / 2)
        return math.floor(_CENTRE - statistics.median(centres) + 0.5) if centres else _CENTRE

    def draws(self, token: str) -> bool:
        """Whether the font has the character `token`, or every letter that the picture of a special token shows."""
        return token == BLANK_LABEL or all(map(self.font.covers, _shown(token)))

    def draw(self, token: str) -> NDArray[np.uint8]:
        """Return the picture of a character (one code point) or special token, `(48, 48)` uint8, ink 1.

        A character stands on `baseline`, its advance centred; it is moved by the least that brings its ink
        into the cell, and made smaller, towards the cell's centre, only when the ink is larger than the cell.
        "[PAD]" is blank; another special token is its letters, as large as the width of the cell allows. What the
        font has without ink is blank, too.

        Raises `UserError` when the font has no such character, lacks one of the letters, or cannot draw it.
        """
        return unpack(np.frombuffer(self.draw_packed(token), np.uint8))

    def draw_packed(self, token: str) -> bytes:
        """Return the bitmap of the picture that `draw` returns: 288 bytes, packed as by `pack`."""
        if token == BLANK_LABEL:
            return bytes(PACKED_BYTES)
        if len(token) > 1:
            return self._draw_label(token)
        if not self.font.covers(token):
            raise UserError(f"font {self.font.name}: has no character {token!r} (U+{ord(token):04X})")
        pixels = REFERENCE_PIXELS
        while True:
            canvas, box = self._ink(token, pixels)
            if box is None:
                return bytes(PACKED_BYTES)
            extent = max(box[2] - box[0], box[3] - box[1])
            if extent <= IMAGE_SIZE:
                left = _shifted(-_CENTRE, box[0], box[2])
                baseline = _CENTRE + (self.baseline - _CENTRE) * pixels // REFERENCE_PIXELS
                top = _shifted(-baseline, box[1], box[3])
                return _cut(canvas, left, top)
            pixels = min(pixels - 1, pixels * IMAGE_SIZE // extent)
            if pixels < 1:
                raise UserError(f"font {self.font.name}: {token!r} (U+{ord(token):04X}) is too large to draw")

    def _draw_label(self, label: str) -> bytes:
        if not self.draws(label):
            raise UserError(f"font {self.font.name}: lacks letters of the label {label!r}")
        for pixels in range(_LABEL_PIXELS, 0, -1):
            canvas, box = self._ink(_shown(label), pixels)
            if box is None and pixels == _LABEL_PIXELS:
                return bytes(PACKED_BYTES)
            if box is None:
                break
            if box[2] - box[0] <= _LABEL_WIDTH:
                left, top = (box[0] + box[2]) // 2 - _CENTRE, (box[1] + box[3]) // 2 - _CENTRE
                return _cut(canvas, left, top)
        raise UserError(f"the label {label!r} does not fit into {IMAGE_SIZE} pixels; give a shorter one")

    def _ink(self, text: str, pixels: int) -> tuple[Image.Image, Box | None]:
        """Draw `text` at `pixels` to the em; return the binary canvas and the box of its ink.

        The box (left, top, right, bottom) is counted from the glyph's origin, the canvas' centre; None: no
        ink. It is taken from the drawn pixels, since the metrics that a font states can be wrong.
        """
        for margin in _MARGINS:
            drawn = Image.new("L", (2 * margin, 2 * margin))
            try:
                ImageDraw.Draw(drawn).text((margin, margin), text, 255, self._face(pixels), "ms")
            except (OSError, ValueError, MemoryError, Image.DecompressionBombError) as error:
                raise UserError(f"font {self.font.name}: cannot draw {text!r} ({error})") from error
            # Without dithering, levels of 128 and more are ink. FreeType versions differ in their levels, and
            # in their own binary mode, but not in which levels reach 128.
            canvas = drawn.convert("1", dither=Image.Dither.NONE)
            box = canvas.getbbox()
            if box is not None and min(box) > 0 and max(box) < 2 * margin:
                break
        if box is None:
            return canvas, None
        return canvas, (box[0] - margin, box[1] - margin, box[2] - margin, box[3] - margin)


def pack(pictures: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Pack pictures `(..., 48, 48)`, ink non-zero, to bitmaps `(..., 288)` uint8: rows first, high bit left."""
    if pictures.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"pictures must be (..., {IMAGE_SIZE}, {IMAGE_SIZE}), not {pictures.shape}")
    return np.packbits(pictures.reshape(*pictures.shape[:-2], IMAGE_SIZE * IMAGE_SIZE) != 0, axis=-1)


def unpack(bitmaps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack bitmaps `(..., 288)` uint8 to pictures `(..., 48, 48)` uint8, ink 1: the inverse of `pack`."""
    if bitmaps.shape[-1:] != (PACKED_BYTES,):
        raise ValueError(f"bitmaps must be (..., {PACKED_BYTES}), not {bitmaps.shape}")
    return np.unpackbits(bitmaps, axis=-1).reshape(*bitmaps.shape[:-1], IMAGE_SIZE, IMAGE_SIZE)


def _shown(token: str) -> str:
    return token.strip("[]") if len(token) > 1 else token


def _shifted(start: int, low: int, high: int) -> int:
    """Move a window of 48 at `start` by the least that makes it hold `low` to `high`."""
    return min(max(start, high - IMAGE_SIZE), low)


def _cut(canvas: Image.Image, left: int, top: int) -> bytes:
    """Pack the cell whose corner lies at (`left`, `top`) from the canvas' centre."""
    left, top = left + canvas.width // 2, top + canvas.height // 2
    # Pillow packs mode "1" as `pack` does, rows first and the high bit to the left.
    return canvas.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)).tobytes()
