"""HanGlyph forward and backward, on the fast path and on oneDNN in both memory orders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from bench.throughput.ideas import ALL_IDEAS, SHARED
from glyphcrm.modeling import GlyphCRMModel, hanglyph

PLAIN = SHARED  # the reference backend
PROBE = 64  # characters that decide which order is the faster one


class GlyphStep:
    """Forward and backward over the first ordinary characters of an atlas, the most frequent of the text."""

    def __init__(self, model: GlyphCRMModel, first: int) -> None:
        self._hanglyph, self._bitmaps = model.hanglyph, model.glyph_table.bitmaps
        self._first = first

    def fast(self, characters: int) -> None:
        """As a model runs it."""
        with ALL_IDEAS.switched_on():
            self._run(characters)

    def channels_last(self, characters: int) -> None:
        """PyTorch's convolutions, which oneDNN computes, channels-last."""
        with PLAIN.switched_on():
            self._run(characters)

    def nchw(self, characters: int) -> None:
        """The same, with the channels outside of the pixels."""
        with PLAIN.switched_on(), _stem_in_nchw():
            self._run(characters)

    def faster_reference(self, characters: int) -> tuple[str, Callable[[int], None]]:
        """Return name and function of the faster memory order, tried on PROBE characters."""
        tried = {"NCHW": self.nchw, "channels-last": self.channels_last}
        seconds = {name: _seconds(step, min(PROBE, characters)) for name, step in tried.items()}
        name = min(seconds, key=seconds.__getitem__)
        return name, tried[name]

    def _run(self, characters: int) -> None:
        rows = torch.arange(self._first, self._first + characters)
        vectors = self._hanglyph(rows, self._bitmaps)
        torch.autograd.backward(vectors, [torch.ones_like(part) for part in vectors])
        self._hanglyph.zero_grad(set_to_none=True)


def _seconds(step: Callable[[int], None], characters: int) -> float:
    step(characters)
    start = time.perf_counter()
    step(characters)
    return time.perf_counter() - start


@contextmanager
def _stem_in_nchw() -> Iterator[None]:
    """The stem's memory order is that of all convolutions after it."""
    stem = hanglyph.glyph_stem

    def contiguous(*arguments: Tensor, backend: str) -> tuple[Tensor, ...]:
        return tuple(part.contiguous() for part in stem(*arguments, backend=backend))

    with patch.object(hanglyph, "glyph_stem", contiguous):
        yield
