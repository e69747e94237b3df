"""Tokens drawn by a chain of fonts: each by the first that has it, with ink."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tqdm import tqdm

from glyphcrm.errors import UserError
from glyphcrm.glyphs import font_process
from glyphcrm.glyphs.font_file import Font
from glyphcrm.glyphs.raster import BLANK_LABEL, PACKED_BYTES, Rasterizer

LABEL_SOURCE = "drawn label"
MOST_LISTED = 5  # characters that no font draws

_BLANK = bytes(PACKED_BYTES)


class Drawn(NamedTuple):
    """The picture of a token, and what drew it."""

    bitmap: bytes  # 288, packed as by `glyphcrm.glyphs.raster.pack`
    source: str  # the font's name, or `LABEL_SOURCE` of special tokens


def draw_tokens(
    tokens: Sequence[str], fonts: Sequence[Font], *, progress: bool = False
) -> tuple[dict[str, Drawn], dict[str, str]]:
    """Return the tokens that can be drawn, and of others that a font has, why it cannot.

    A font that has a character without ink, as fonts with placeholders do, is passed over for the next one: a blank
    picture would make the character one with "[PAD]". Raises `UserError` for a font that takes more time or memory than
    a font may.
    """
    drawn: dict[str, Drawn] = {}
    reasons: dict[str, str] = {}
    with tqdm(total=len(tokens), desc="drawing", unit=" glyphs", disable=None if progress else True) as bar:
        for font in fonts:
            rasterizer = Rasterizer(font)
            wanted = [token for token in tokens if token not in drawn and rasterizer.draws(token)]
            for token, bitmap, failure in _draw(rasterizer, wanted):
                if bitmap != _BLANK or token == BLANK_LABEL:
                    drawn[token] = Drawn(bitmap, LABEL_SOURCE if len(token) > 1 else font.name)
                    bar.update()
                else:
                    reasons.setdefault(token, failure or f"{font.name} has it without ink")
    return drawn, reasons


def undrawn(tokens: Sequence[str], reasons: Mapping[str, str], fonts: Sequence[Font]) -> str:
    """Return what to tell of tokens that no font draws; `reasons` are those that `draw_tokens` returned."""
    missing = [token for token in tokens if token not in reasons]
    shown = [f"{token} (U+{ord(token):04X})" if len(token) == 1 else token for token in (missing or tokens)]
    listed = ", ".join(shown[:MOST_LISTED]) + (f" and {more} more" if (more := len(shown) - MOST_LISTED) > 0 else "")
    names = ", ".join(font.name for font in fonts) or "(none given)"
    if missing:
        return f"no font has {listed}; add a font that does to: {names}"
    return f"no font draws {listed} ({reasons[tokens[0]]}); add a font that does to: {names}"


def _draw(rasterizer: Rasterizer, tokens: Sequence[str]) -> Iterator[tuple[str, bytes, str | None]]:
    """Yield each token, its bitmap (blank if it has no ink or fails) and, if it fails, the reason."""
    if not rasterizer.font.bundled:
        yield from font_process.draw_within_bounds(rasterizer.font, tokens)
        return
    for token in tokens:
        try:
            yield token, rasterizer.draw_packed(token), None
        except UserError as error:
            yield token, _BLANK, str(error)
