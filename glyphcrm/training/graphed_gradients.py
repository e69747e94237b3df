"""The gradients of an optimiser step as CUDA graphs: one of each size of micro-batch, two of each number of characters.

    HanGlyph forward -> for each micro-batch: forward and backward down to the glyph vectors -> HanGlyph backward

Everything that these read and write stays in place: inputs are copied into buffers, gradients and sums are added to
those there are, the vectors lie in tables that are larger than needed. Between the recordings processes exchange
vectors and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from glyphcrm.modeling.glyph_vectors import ranks
from glyphcrm.modeling.glyph_vectors.share import Rescale, leaves_of, vectors_read, with_vectors
from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.training.graph import Graphs, Recording

Batch = dict[str, Any]
# (a micro-batch on the device, the same as the model takes it, totals of the step) to its share of the loss; it adds
# to the gradients.
Accumulate = Callable[[Batch, Batch, Tensor], Tensor]
CHARACTERS = 128  # HanGlyph reads a multiple of so many, over all processes: 4 % too many of 1,700


class GraphedGradients:
    """Adds the gradients of a step's micro-batches to those there are.

    Nothing waits for the device. With several processes their hosts wait for each other once, for the ids.

    Args:
        accumulate: forward and backward of a micro-batch, see `Accumulate`; it enters autocast by itself, reads no
            number from the device, and lets no number that changes between steps in but through tensors.
        glyph_model: the encoder, whose characters all micro-batches share; None for a model that reads no pictures.
        autocast: gives the context of HanGlyph's forward.
        device: of the model.
        rescale: what HanGlyph's backward gets, of the gradients that there are; it is not recorded.
    """

    def __init__(
        self,
        accumulate: Accumulate,
        glyph_model: GlyphCRMModel | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
        graphs: Graphs,
        rescale: Rescale | None = None,
    ) -> None:
        self._accumulate, self._model, self._autocast = accumulate, glyph_model, autocast
        self._device, self._graphs, self._rescale = device, graphs, rescale
        self._tables: dict[int, _Table] = {}  # by capacity, a few powers of two
        self._totals: Tensor | None = None
        self._loss = torch.zeros((), device=device)

    def __call__(self, micro_batches: Sequence[Batch], totals: Tensor) -> Tensor:
        """Return the sum of the micro-batches' shares of the loss, ().

        Args:
            micro_batches: on the CPU, of tensors whose shapes take few values, and of numbers that take as few.
            totals: on the device, of one shape in all steps.
        """
        if self._totals is None:
            self._totals, self._loss = totals.clone(), self._loss.to(torch.promote_types(totals.dtype, torch.float32))
        with self._graphs.step():
            self._totals.copy_(totals)
            self._loss.zero_()
            share, table = self._encode(micro_batches)
            for batch in micro_batches:
                self._run_micro_batch(batch, table)
            if share is not None and table is not None:
                for gradient, own in zip(share.gradients, table.own_gradients(share, self._rescale), strict=True):
                    gradient.copy_(own)
                self._graphs.run(share.recording, 1)
        return self._loss.clone()

    def begin_anew(self) -> None:
        """Record everything once more, as other weights get gradients from now on."""
        self._graphs.begin_anew()

    def _encode(self, micro_batches: Sequence[Batch]) -> tuple[_Share | None, _Table | None]:
        """Run HanGlyph for all characters of the step."""
        model = self._model
        if model is None:
            return None, None
        bitmaps = model.glyph_table.bitmaps
        ids = torch.cat([batch["glyph_ids"] for batch in micro_batches])
        ids = ranks.distinct_characters(ids, len(bitmaps))
        size = ranks.world() * _share_size(len(ids))
        rows = ranks.own_share(ranks.filled_up(ids, size))
        share = self._graphs.of_size(("characters", len(rows)), lambda: _Share(model, self._autocast, len(rows)))
        _copy(share.rows, rows)
        self._graphs.run(share.recording, 0)
        capacity = 1 << (size - 1).bit_length()
        if capacity not in self._tables:
            self._tables[capacity] = _Table(capacity, share.vectors)
        table = self._tables[capacity]
        table.begin(ids, share.vectors)
        return share, table

    def _run_micro_batch(self, batch: Batch, table: _Table | None) -> None:
        batch = _with_room(batch)
        capacity = 0 if table is None else len(table.ids)
        key = ("micro-batch", capacity, *((name, _kind(batch[name])) for name in sorted(batch)))
        micro_batch = self._graphs.of_size(key, lambda: _MicroBatch(self, batch, table))
        micro_batch.fill(batch)
        self._graphs.run(micro_batch.recording)


class _MicroBatch:
    """Forward and backward of the micro-batches of one size."""

    def __init__(self, step: GraphedGradients, batch: Batch, table: _Table | None) -> None:
        self.inputs = {
            name: torch.empty_like(value, device=step._device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        self.recording = Recording(self.run)
        self._step, self._table = step, table

    def fill(self, batch: Batch) -> None:
        """Copy a batch to where the recording reads it."""
        for name, value in batch.items():
            if isinstance(value, Tensor):
                _copy(self.inputs[name], value)

    def run(self) -> None:
        step, table = self._step, self._table
        assert step._totals is not None
        arguments = self.inputs if table is None else table.arguments(self.inputs)
        step._loss += step._accumulate(self.inputs, arguments, step._totals)


class _Share:
    """HanGlyph over this process's characters of a step, forward and backward.

    Attributes:
        rows: (P,) int64, what it reads.
        vectors: (P, d) each, what it has made of them; there after the first forward.
        gradients: (P, d) each, of the vectors that are read, in their dtype.
    """

    def __init__(self, model: GlyphCRMModel, autocast: Callable[[], AbstractContextManager[Any]], size: int) -> None:
        self.rows = torch.zeros(size, dtype=torch.int64, device=model.glyph_table.bitmaps.device)
        self.vectors: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.recording = Recording(self.forward, self.backward)
        self._model, self._autocast = model, autocast
        self._made: Sequence[Tensor] = ()

    def forward(self) -> None:
        with self._autocast():
            table = self._model.glyph_table
            made = self._model.hanglyph(*table.pictures(self.rows, table.bitmaps))
        self._made = made[: vectors_read(self._model)]
        if not self.vectors:
            self.vectors = [torch.empty_like(vector, requires_grad=False) for vector in made]
            self.gradients = [torch.empty_like(vector, requires_grad=False) for vector in self._made]
        for vector, new in zip(self.vectors, made, strict=True):
            vector.copy_(new.detach())

    def backward(self) -> None:
        made, self._made = self._made, ()
        torch.autograd.backward(made, self.gradients)


class _Table:
    """The vectors of up to `capacity` characters of a step, of all processes, where micro-batches read them.

    Attributes:
        ids: (capacity,) int64, rising; the last character fills it up.
    """

    def __init__(self, capacity: int, vectors: Sequence[Tensor]) -> None:
        self.ids = torch.zeros(capacity, dtype=torch.int64, device=vectors[0].device)
        self._leaves = leaves_of([vector.new_zeros(capacity, vector.shape[1]) for vector in vectors])
        self._gradients = [torch.zeros_like(leaf) for leaf in self._leaves]
        for leaf, gradient in zip(self._leaves, self._gradients, strict=True):
            leaf.grad = gradient
        self._dtype = vectors[0].dtype

    def begin(self, ids: Tensor, vectors: Sequence[Tensor]) -> None:
        """Take over the rising `ids` of a step and their vectors from all processes."""
        _copy(self.ids, ranks.filled_up(ids, len(self.ids)))
        for leaf, made in zip(self._leaves, ranks.gather(vectors), strict=True):
            leaf.detach()[: len(made)].copy_(made)
        torch._foreach_zero_(self._gradients)

    def arguments(self, batch: Batch) -> Batch:
        """Return a batch as the model takes it."""
        return with_vectors(batch, self.ids, self._leaves, self._dtype)

    def own_gradients(self, share: _Share, rescale: Rescale | None) -> Sequence[Tensor]:
        """Return the gradients of a process's vectors, summed over the processes, then rescaled."""
        size = len(share.rows) * ranks.world()
        own = ranks.reduce_scatter([gradient[:size] for gradient in self._gradients[: len(share.gradients)]])
        return own if rescale is None else rescale(self.ids[:size], own)


def _share_size(characters: int) -> int:
    """Return how many characters each process reads, of so many."""
    multiple = max(8, CHARACTERS // ranks.world())
    return math.ceil(characters / (ranks.world() * multiple)) * multiple


def _with_room(batch: Batch) -> Batch:
    """Return a batch with so many distinct ids as it has tokens, so that their number makes no size of its own."""
    ids, tokens = batch["glyph_ids"], batch["glyph_index"].numel()
    return batch if len(ids) >= tokens else {**batch, "glyph_ids": ranks.filled_up(ids, tokens)}


def _kind(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _copy(target: Tensor, value: Tensor) -> None:
    """Copy to a device in the order of its work; the host does not wait, as it would for memory that is not pinned."""
    pinned = value.pin_memory() if target.is_cuda and not (value.is_cuda or value.is_pinned()) else value
    target.copy_(pinned, non_blocking=True)
