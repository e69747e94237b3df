"""The pictures of all tokens: what the model looks its input up in, and how they are kept in a file."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically
from glyphcrm.glyphs.drawing import draw_tokens, undrawn
from glyphcrm.glyphs.font_file import Font
from glyphcrm.glyphs.raster import PACKED_BYTES, unpack

FORMAT_VERSION = 1

_METADATA_KEY = "glyph_atlas"
_SPECIAL_TOKEN = re.compile(r"\[[^\s\[\]]+\]")
_MOST_SOURCES = 256


@dataclass(frozen=True, eq=False)
class GlyphAtlas:
    """Tokens and their 48x48 binary pictures; the row of a token is its id. Immutable.

    Raises `UserError` when its parts do not fit together.
    """

    tokens: tuple[str, ...]  # N distinct ones, each one code point, or a name in brackets such as "[PAD]"
    bitmaps: NDArray[np.uint8]  # (N, 288), the pictures packed as by `glyphcrm.glyphs.raster.pack`
    fonts: tuple[str, ...]  # names of what drew the rows: fonts, "drawn label", or what `append` was told
    sources: NDArray[np.uint8]  # (N,), for each row the index in `fonts` of what drew it

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "fonts", tuple(self.fonts))
        count = len(self.tokens)
        for name, shape in (("bitmaps", (count, PACKED_BYTES)), ("sources", (count,))):
            array = np.array(getattr(self, name), order="C")
            if array.shape != shape or array.dtype != np.uint8:
                raise UserError(f"{name} of {count} tokens are {shape} uint8, not {array.shape} {array.dtype}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        _check_tokens(self.tokens)
        if len(self.fonts) > _MOST_SOURCES:
            raise UserError(f"an atlas is drawn by at most {_MOST_SOURCES} fonts, not {len(self.fonts)}")
        if count and int(self.sources.max()) >= len(self.fonts):
            raise UserError(f"source {int(self.sources.max())} is none of the atlas' {len(self.fonts)} fonts")

    @classmethod
    def build(
        cls, tokens: Iterable[str], fonts: Sequence[Font], *, leave_out: bool = False, progress: bool = False
    ) -> GlyphAtlas:
        """Draw each of `tokens` with the first of `fonts` that has it with ink; `progress` shows a bar on a terminal.

        Raises `UserError` when no font draws a character (or all the letters of a special token), unless `leave_out`
        says that the atlas shall do without; and when a font takes more time or memory than a font may.
        """
        tokens = tuple(tokens)
        _check_tokens(tokens)
        drawn, reasons = draw_tokens(tokens, fonts, progress=progress)
        if len(drawn) < len(tokens) and not leave_out:
            raise UserError(undrawn([token for token in tokens if token not in drawn], reasons, fonts))
        tokens = tuple(token for token in tokens if token in drawn)
        names = tuple(dict.fromkeys(drawn[token].source for token in tokens))
        numbers = {name: number for number, name in enumerate(names)}
        return cls(
            tokens,
            np.frombuffer(b"".join(drawn[token].bitmap for token in tokens), np.uint8).reshape(-1, PACKED_BYTES),
            names,
            np.array([numbers[drawn[token].source] for token in tokens], np.uint8),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return GlyphAtlas, (self.tokens, self.bitmaps, self.fonts, self.sources)

    @functools.cached_property
    def rows(self) -> Mapping[str, int]:
        """The row of each token."""
        return {token: row for row, token in enumerate(self.tokens)}

    def pictures(self, rows: ArrayLike) -> NDArray[np.uint8]:
        """Return the pictures of `rows` (integers of any shape) as `(*rows.shape, 48, 48)` uint8, ink 1."""
        return unpack(self.bitmaps[np.asarray(rows, np.int64)])

    def look_alikes(self) -> list[tuple[str, ...]]:
        """Return the tokens that share a picture, two or more together, in the order of their first row."""
        groups: dict[bytes, list[str]] = {}
        for token, bitmap in zip(self.tokens, self.bitmaps, strict=True):
            groups.setdefault(bitmap.tobytes(), []).append(token)
        return [tuple(group) for group in groups.values() if len(group) > 1]

    def append(self, tokens: Sequence[str], bitmaps: NDArray[np.uint8], source: str) -> GlyphAtlas:
        """Return an atlas with rows added for new `tokens`, their pictures `(n, 288)` uint8 from elsewhere.

        `source` says where the pictures come from, and stands in `fonts`. Raises `UserError` when a token
        has a row already.
        """
        return self._with_rows(tuple(tokens), bitmaps, (source,), np.zeros(len(tokens), np.uint8))

    def extended(self, other: GlyphAtlas) -> GlyphAtlas:
        """Return an atlas with the rows of `other` added whose tokens have none here; no row here changes."""
        new = [row for row, token in enumerate(other.tokens) if token not in self.rows]
        tokens = tuple(other.tokens[row] for row in new)
        return self._with_rows(tokens, other.bitmaps[new], other.fonts, other.sources[new])

    def of(self, tokens: Iterable[str]) -> GlyphAtlas:
        """Return an atlas of these of the tokens alone, in their order; raise `KeyError` for one that has no row."""
        tokens = tuple(tokens)
        rows = [self.rows[token] for token in tokens]
        return GlyphAtlas(tokens, self.bitmaps[rows], self.fonts, self.sources[rows])

    def redrawn(self, font: Font, *, progress: bool = False) -> GlyphAtlas:
        """Return an atlas of the same tokens, with `font`'s pictures of the characters that it has with ink.

        Special tokens and all other characters keep theirs. Raises `UserError` when the font draws no character, or
        takes more time or memory than a font may.
        """
        drawn, reasons = draw_tokens([token for token in self.tokens if len(token) == 1], [font], progress=progress)
        if not drawn:
            why = f" ({next(iter(reasons.values()))})" if reasons else ""
            raise UserError(f"font {font.path}: {font.name} draws none of the characters{why}; give another font")
        fonts = tuple(dict.fromkeys([*self.fonts, font.name]))
        bitmaps, sources = self.bitmaps.copy(), self.sources.copy()
        rows = [self.rows[token] for token in drawn]
        bitmaps[rows] = [np.frombuffer(picture.bitmap, np.uint8) for picture in drawn.values()]
        sources[rows] = fonts.index(font.name)
        return GlyphAtlas(self.tokens, bitmaps, fonts, sources)

    def _with_rows(
        self, tokens: tuple[str, ...], bitmaps: NDArray[np.uint8], fonts: tuple[str, ...], sources: NDArray[np.uint8]
    ) -> GlyphAtlas:
        if bitmaps.ndim != 2 or bitmaps.dtype != np.uint8:
            raise UserError(f"bitmaps to add are (n, {PACKED_BYTES}) uint8, not {bitmaps.shape} {bitmaps.dtype}")
        used, positions = np.unique(sources, return_inverse=True)
        all_fonts = tuple(dict.fromkeys([*self.fonts, *(fonts[i] for i in used)]))
        renumbered = np.array([all_fonts.index(fonts[i]) for i in used], int)[positions].astype(np.uint8)
        return GlyphAtlas(
            self.tokens + tokens,
            np.concatenate([self.bitmaps, bitmaps]),
            all_fonts,
            np.concatenate([self.sources, renumbered]),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the atlas to one safetensors file, whole or not at all; raise `UserError` when it cannot be written.

        It holds the tensors `bitmaps` and `sources`, and one metadata string, JSON: the tokens, the fonts, the format's
        version and SHA-256 digests. Equal atlases make equal files.
        """
        # One string, since safetensors writes several in random order.
        metadata = {_METADATA_KEY: _json(self._description())}
        write_atomically(Path(path), save({"bitmaps": self.bitmaps, "sources": self.sources}, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GlyphAtlas:
        """Read an atlas that `save` wrote.

        Raises `UserError` for a file that is missing, truncated, altered or something else.
        """
        try:
            with safe_open(os.fspath(path), framework="np") as file:
                description = json.loads((file.metadata() or {})[_METADATA_KEY])
                if (found := description["format"]) != FORMAT_VERSION:
                    raise UserError(f"its format is {found!r}; this program reads {FORMAT_VERSION}")
                if sorted(file.keys()) != ["bitmaps", "sources"] or not all(
                    isinstance(font, str) for font in description["fonts"]
                ):
                    raise UserError("it lacks an atlas' tensors or metadata")
                bitmaps, sources = file.get_tensor("bitmaps"), file.get_tensor("sources")
            atlas = cls(description["tokens"], bitmaps, description["fonts"], sources)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such atlas; `glyphcrm atlas build` makes one") from error
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: truncated, or not a glyph atlas ({error})") from error
        if atlas._description() != description:
            raise UserError(f"{path}: damaged, its content does not match its digests; make it again")
        return atlas

    def _description(self) -> dict[str, Any]:
        return {
            "format": FORMAT_VERSION,
            "tokens": list(self.tokens),
            "fonts": list(self.fonts),
            "tokens_digest": tokens_digest(self.tokens),
            "bitmaps_digest": bitmaps_digest(self.bitmaps),
            "sources_digest": _digest(_json(self.fonts).encode(errors="surrogatepass") + self.sources.tobytes()),
        }


def check_fonts_draw(fonts: Iterable[Font], atlas: GlyphAtlas) -> None:
    """Raise `UserError` for a font that was given and has drawn none of the atlas' rows."""
    for font in fonts:
        if font.name not in atlas.fonts:
            raise UserError(f"font {font.path}: {font.name} has none of the characters; leave it out or give another")


def tokens_digest(tokens: Iterable[str]) -> str:
    """Return the hex SHA-256 of tokens in their order (of a JSON list of them, UTF-8, no spaces)."""
    return _digest(_json(list(tokens)).encode())


def bitmaps_digest(bitmaps: NDArray[np.uint8]) -> str:
    """Return the hex SHA-256 of packed pictures `(N, 288)` uint8, row after row."""
    return _digest(np.ascontiguousarray(bitmaps).tobytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _check_tokens(tokens: tuple[str, ...]) -> None:
    if len(set(tokens)) != len(tokens):
        token, count = Counter(tokens).most_common(1)[0]
        raise UserError(f"the token {token!r} has {count} rows; each token has one")
    for token in tokens:
        if len(token) != 1 and not _SPECIAL_TOKEN.fullmatch(token):
            raise UserError(f"the token {token!r} is neither one code point nor a name in brackets, as [PAD]")
        if len(token) == 1 and "\ud800" <= token <= "\udfff":
            raise UserError(f"the token {token!r} is a lone surrogate; give whole code points")
