"""Each character encoded once, ever, at inference: a table of HanGlyph's vectors, emptied when weights change."""

from __future__ import annotations

import functools
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.modeling.backend import kernel_backend
from glyphcrm.modeling.glyph_vectors.file import load_vectors, vectors_digest
from glyphcrm.modeling.hanglyph import GlyphVectors, HanGlyph, is_plain

PLAIN_TENSORS = (Tensor, nn.Parameter)


@dataclass
class _Table:
    """Vectors by atlas row."""

    origin: tuple[Any, ...]  # of `_origin`: what the vectors were computed from
    sources: list[Tensor]  # what they were computed from, held so that no other tensor gets their address
    parameters: frozenset[int]  # `id` of each parameter, for optimisers
    known: Tensor  # (N,) bool: which rows are filled
    vectors: GlyphVectors | None = None  # (N, d) each; None as long as no row is
    complete: bool = False  # all rows are


class GlyphCache:
    """The vectors of the characters that a model has met while its weights stood still.

    Several threads may ask at once.

    The tables are allocated whole: a row is written once and never moves, so that threads read without a lock, and an
    atlas row is its own index. A CPU gives memory to rows when they are written, so it grows with the characters
    met, to 3 N d values: 258 MB for `base` in float32; a GPU gives all of it at once.

    Six things empty them:

    * a parameter, a buffer or the pictures become another tensor, their version rises, or it is frozen or thawed;
    * HanGlyph was asked while they could not be kept: with an adapter in it, which may be merged into its weights;
    * an optimiser that holds a parameter takes a step: fused ones leave the version as it is;
    * another autocast type;
    * another kernel backend;
    * `clear`, which the model calls when it is moved and when training begins, to free the memory.

    Writing through ``.data`` is not seen, nor from another process to shared memory, nor to tensors made in inference
    mode, which have no version: call `clear` after it. Vectors from a file are then compared with the weights again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table: _Table | None = None
        self._stored: tuple[GlyphVectors, str] | None = None  # of a file, and their digest

    def __reduce__(self) -> tuple[type[GlyphCache], tuple[()]]:
        """Copies of a model, and pickled ones, start with an empty cache."""
        return GlyphCache, ()

    def clear(self) -> None:
        """Forget the vectors and free their memory."""
        self._table = None

    def load(self, path: Path, hanglyph: HanGlyph, bitmaps: Tensor) -> None:
        """Take over the vectors of a file of `glyphcrm atlas encode`.

        Raises `ValueError`: it is damaged, of other sizes, or of other weights or pictures.
        """
        vectors, digest = load_vectors(path)
        shape, expected = tuple(vectors.vector.shape), (len(bitmaps), hanglyph.vector.out_features)
        if shape != expected:
            raise ValueError(f"it has vectors of shape {shape}, not {expected}")
        if digest != vectors_digest(hanglyph, bitmaps):
            raise ValueError("it is of other weights or pictures, or the weights were rounded to a smaller dtype")
        self._stored = vectors, digest
        self.clear()

    def vectors(self, hanglyph: HanGlyph, bitmaps: Tensor, rows: Tensor) -> GlyphVectors | None:
        """Return tables ``(N, d)`` in which at least `rows` are filled; None where nothing can be kept.

        Until all rows are filled, a GPU is waited for, to learn which of them are missing.

        Args:
            hanglyph: in evaluation mode; no gradient flows to it.
            bitmaps: ``(N, 288)`` uint8.
            rows: int64 of any shape, in ``[0, N)``.
        """
        sources = [*hanglyph.parameters(), *hanglyph.buffers(), bitmaps]
        origin = _origin(hanglyph, sources)
        if origin is None:
            self.clear()
            return None
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            table = self._table
            if table is None or table.origin != origin:
                with self._lock:
                    table = self._table
                    if table is None or table.origin != origin:
                        table = self._table = self._start(origin, sources, hanglyph, bitmaps)
            if not table.complete and not table.known[rows].all():
                with self._lock:
                    _fill(table, hanglyph, bitmaps, rows)
        return table.vectors

    def is_complete(self) -> bool:
        """Whether all characters of the atlas were met, or loaded."""
        table = self._table
        return table is not None and table.complete

    def _start(self, origin: tuple[Any, ...], sources: list[Tensor], hanglyph: HanGlyph, bitmaps: Tensor) -> _Table:
        known = torch.zeros(len(bitmaps), dtype=torch.bool, device=bitmaps.device)
        parameters = frozenset(id(parameter) for parameter in hanglyph.parameters())
        table = _Table(origin, [source.detach() for source in sources], parameters, known)
        if self._stored is not None:
            vectors, digest = self._stored
            if digest == vectors_digest(hanglyph, bitmaps):
                dtype = _autocast_dtype(bitmaps.device) or hanglyph.vector.weight.dtype
                table.vectors = GlyphVectors(*(part.to(bitmaps.device, dtype) for part in vectors))
                table.complete = True
            else:
                self._stored = None
        _watch_optimizers()
        _caches.add(self)
        return table


def _fill(table: _Table, hanglyph: HanGlyph, bitmaps: Tensor, rows: Tensor) -> None:
    missing = rows[~table.known[rows]].unique()
    if len(missing) == 0:  # another thread was faster
        return
    made = hanglyph.all_vectors(missing, bitmaps)
    if table.vectors is None:
        table.vectors = GlyphVectors(*(part.new_empty(len(bitmaps), part.shape[1]) for part in made))
    for whole, part in zip(table.vectors, made, strict=True):
        whole[missing] = part
    if missing.is_cuda:
        torch.cuda.current_stream(missing.device).synchronize()  # other threads read on streams of their own
    table.known[missing] = True
    table.complete = bool(table.known.all())


def _origin(hanglyph: HanGlyph, sources: list[Tensor]) -> tuple[Any, ...] | None:
    """Return what the vectors depend on, cheap and comparable; None if they may depend on more."""
    # An adapter, a hook or a quantised layer may change what HanGlyph says without changing a parameter.
    if not all(is_plain(module) for module in hanglyph.modules()):
        return None
    # Sharded parameters are tensors of other types, or have no memory of their own.
    if not all(type(source) in PLAIN_TENSORS and source.data_ptr() for source in sources):
        return None
    # A replica (torch.nn.DataParallel) has none, and lives for one call.
    if not any(isinstance(source, nn.Parameter) for source in sources):
        return None
    config = hanglyph.config
    assert isinstance(config, GlyphCRMConfig)
    versions = (
        (
            *(source.data_ptr(), source.dtype, source.device, None if source.is_inference() else source._version),
            source.requires_grad,  # peft merges an adapter through `.data`, but first it freezes what it adapts
        )
        for source in sources
    )
    return (_autocast_dtype(sources[0].device), kernel_backend(config), *versions)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


_caches: weakref.WeakSet[GlyphCache] = weakref.WeakSet()


@functools.cache
def _watch_optimizers() -> None:
    # For all optimisers, as only a step itself tells that a fused one (torch 2.9 to 2.13) has written to weights:
    # versions stay, and looking at the weights would take longer than the vectors, and a GPU would be waited for.
    register_optimizer_step_post_hook(_clear_after_step)


def _clear_after_step(optimizer: Optimizer, *_: Any) -> None:
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for cache in list(_caches):
        table = cache._table
        if table is not None and not table.parameters.isdisjoint(stepped):
            cache.clear()
