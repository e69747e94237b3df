"""HanGlyph once for all micro-batches and processes of an optimiser step, instead of once for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glyphcrm.modeling.glyph_vectors import ranks
from glyphcrm.modeling.hanglyph import GlyphVectors

if TYPE_CHECKING:
    from glyphcrm.modeling.model import GlyphCRMModel


# (atlas rows of a step, gradients of this process's share) to the gradients that go on through HanGlyph.
Rescale = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]


class SharedGlyphs:
    """The vectors of all distinct characters of a step; each batch's backward stops at them.

    Half of a batch's distinct characters stand in the next one, too: 4,096 tokens of news hold 970 of them, four times
    as many tokens 1,700. So it pays to look at the whole step:

        glyphs = SharedGlyphs(model, batches)
        for batch in batches:
            model(**glyphs.arguments(batch)).loss.backward()
        glyphs.backward()

    Gradients are those of separate batches, but for rounding; they are summed over the batches in float32. What
    HanGlyph keeps for its backward stays in memory for the whole step, at base size some 1.6 MB a character in float32
    and half of it in bfloat16. On a GPU the host waits for the device once.

    The processes of torch.distributed, if there are several, divide the step's characters evenly. All of them make
    this object and call `backward`, with as many batches in between as each has, be it none. Vectors are gathered, and
    their gradients summed over the processes, so that HanGlyph's parameters get in each process the gradients of its
    own characters: those of the whole step are the sum over the processes, as for all other parameters.

    Args:
        model: a `GlyphCRMModel` in training mode.
        batches: with `glyph_ids` and `glyph_index`, as collators make them, on the model's device.
    """

    def __init__(self, model: GlyphCRMModel, batches: Sequence[Mapping[str, Any]]) -> None:
        bitmaps = model.glyph_table.bitmaps
        ids = torch.cat([torch.empty(0, dtype=torch.int64, device=bitmaps.device), *map(_glyph_ids, batches)])
        distinct = ranks.distinct_characters(ids, len(bitmaps))
        # Processes that would have fewer, or none, encode the last character again: read by nothing, its gradient is 0.
        self._ids = ranks.filled_up(distinct, math.ceil(len(distinct) / ranks.world()) * ranks.world())
        self._made: GlyphVectors = model.hanglyph(*model.glyph_table.pictures(ranks.own_share(self._ids), bitmaps))
        self._leaves = leaves_of(ranks.gather([made.detach() for made in self._made]))
        self._read = vectors_read(model)

    def arguments(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch as the model takes it, with the vectors instead of `glyph_ids`."""
        return with_vectors(batch, self._ids, self._leaves, self._made[0].dtype)

    def backward(self, rescale: Rescale | None = None) -> None:
        """Continue the backwards of all batches through HanGlyph, with what `rescale` makes of the gradients."""
        made, leaves = self._made[: self._read], self._leaves[: self._read]
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        own: Sequence[Tensor] = ranks.reduce_scatter(gradients)
        if rescale is not None:
            own = rescale(self._ids, own)
        torch.autograd.backward(made, [gradient.to(part.dtype) for gradient, part in zip(own, made, strict=True)])


def with_vectors(batch: Mapping[str, Any], ids: Tensor, leaves: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Return a batch as a model takes it, with the vectors `leaves` ``(U, d)`` of `ids` ``(U,)``, read in `dtype`.

    They take the place of `glyph_ids`; `ids` rise, and hold all of these.
    """
    rows = torch.searchsorted(ids, batch["glyph_ids"])
    kept = {name: value for name, value in batch.items() if name != "glyph_ids"}
    vectors = GlyphVectors(*(leaf.to(dtype) for leaf in leaves))
    return {**kept, "glyph_index": rows[batch["glyph_index"]], "glyph_vectors": vectors}


def leaves_of(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of vectors, or they themselves if they are wide enough, in which gradients are summed up."""
    return [vector.detach().to(torch.promote_types(vector.dtype, torch.float32)).requires_grad_() for vector in vectors]


def vectors_read(model: GlyphCRMModel) -> int:
    """Return how many of the three vectors get gradients: a model of one block reads only the first skip."""
    return min(3, 1 + len(model.blocks))


def _glyph_ids(batch: Mapping[str, Any]) -> Tensor:
    ids: Tensor = batch["glyph_ids"]
    return ids
