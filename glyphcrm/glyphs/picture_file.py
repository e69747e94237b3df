"""A character's picture from a PNG file, for characters that no font has. The files are untrusted."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glyphcrm.errors import UserError
from glyphcrm.glyphs.font_file import REFERENCE_PIXELS
from glyphcrm.glyphs.raster import IMAGE_SIZE, pack

PICTURE_SOURCE = "PNG picture"
LONGEST_SIDE = 4096  # pixels
LARGEST_FILE = 1 << 24  # bytes
MOST_ELONGATED = 2  # longer side to shorter side
MOST_INK = 0.75  # of the picture; the densest character of the default font has under a half

# What Pillow raises for files that are no image, and for broken chunks of those that are.
DAMAGES = (Image.DecompressionBombError, EOFError, IndexError, OSError, SyntaxError, ValueError, struct.error)

_LEVELS = 256
_INK_LEVEL = 128


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Return the picture in a PNG file as `(288,)` uint8, packed as by `glyphcrm.glyphs.raster.pack`.

    Ink is what is darker than the middle and not transparent. A picture of 48x48 pixels is taken as it is; else its
    longer side is taken for the em, and becomes the 46 pixels at which fonts are drawn, and its ink is centred.

    Raises `UserError`: the file is missing, no PNG, damaged, or over 16 MiB; a side has over 4,096 pixels or is more
    than twice the other; there is no ink, or so much that it must be light on dark.
    """
    image = _opened(path)
    whole = image.size == (IMAGE_SIZE, IMAGE_SIZE)
    ink = image if whole else _centred(image)
    picture = np.asarray(ink) >= _INK_LEVEL
    if not picture.any():
        raise UserError(
            f"{path}: blank at {IMAGE_SIZE}x{IMAGE_SIZE} pixels; give dark ink on a light or transparent ground"
        )
    if np.mean(np.asarray(image) >= _INK_LEVEL) > MOST_INK:
        raise UserError(
            f"{path}: more than {MOST_INK:.0%} of it is ink; give dark ink on a light ground, not the reverse"
        )
    return pack(picture)


def _opened(path: Path) -> Image.Image:
    """Return the ink of the picture, mode "L", 255 where it is black."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than 16 MiB; a character needs no more than 48x48 pixels")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            opened = Image.open(path, formats=("PNG",))
        with opened as image:
            short, long = sorted(image.size)
            if long > LONGEST_SIDE or long > MOST_ELONGATED * short:
                raise UserError(
                    f"{path}: {image.width}x{image.height} pixels; give a picture of one character, about as wide as "
                    f"high, of at most {LONGEST_SIDE} a side"
                )
            return _ink(image)
    except UserError:
        raise
    except DAMAGES as error:
        reason = getattr(error, "strerror", None) or "not a PNG image, or a damaged one"
        raise UserError(f"{path}: {reason}; give the PNG file of one character") from None


def _ink(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow's own conversion would cut all but the darkest off.
        levels = np.asarray(image).astype(np.int64) // _LEVELS
        return Image.fromarray((_LEVELS - 1 - levels).astype(np.uint8))
    drawn = image.convert("RGBA")
    paper = Image.new("RGBA", drawn.size, "white")
    grey = np.asarray(Image.alpha_composite(paper, drawn).convert("L"))
    return Image.fromarray(_LEVELS - 1 - grey)


def _centred(image: Image.Image) -> Image.Image:
    scale = REFERENCE_PIXELS / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    box = small.point(lambda level: level >= _INK_LEVEL, "1").getbbox()
    cell = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    if box is not None:
        left, top = ((IMAGE_SIZE - box[i] - box[i + 2]) // 2 for i in (0, 1))
        cell.paste(small, (left, top))
    return cell
