"""The characters of a step divided among the processes of torch.distributed; without any, all are one's own.

What each process sends is the same size everywhere, so that no sizes have to be agreed upon. All functions but `world`
are collective: every process calls them, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Return how many processes share the characters."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def distinct_characters(ids: Tensor, rows: int) -> Tensor:
    """Return the distinct `ids` of all processes ``(D,)``, rising, the same on each; a GPU is waited for, once.

    `ids` are int64 of any shape, in ``[0, rows)``, on the device of the process group.
    """
    if world() == 1:
        return ids.unique()
    # One byte a row of the atlas: less than the ids themselves, and no process has to know how many others have.
    present = torch.zeros(rows, dtype=torch.uint8, device=ids.device)
    present[ids] = 1
    dist.all_reduce(present, dist.ReduceOp.MAX)
    return present.nonzero().squeeze(1)


def filled_up(ids: Tensor, size: int) -> Tensor:
    """Return rising `ids` ``(D,)`` with the last one repeated up to `size`: what `searchsorted` takes."""
    return torch.cat([ids, ids[-1:].expand(size - len(ids))])


def own_share(rows: Tensor) -> Tensor:
    """Return this process's part ``(P, ...)`` of `rows` ``(P * world, ...)``, a view; all in order are the whole."""
    return rows.unflatten(0, (world(), -1))[dist.get_rank() if world() > 1 else 0]


def exchange(rows: Tensor) -> None:
    """Fill in the shares of the other processes in `rows` ``(P * world, ...)``, of which each has made its own."""
    for rank, share in enumerate(rows.unflatten(0, (world(), -1)) if world() > 1 else ()):
        dist.broadcast(share, rank)  # in place, unlike a gathering, which would need the memory once more


def gather(shares: Sequence[Tensor]) -> list[Tensor]:
    """Return for each tensor ``(P, d)`` of one dtype the rows of all processes ``(P * world, d)``."""
    if world() == 1:
        return list(shares)
    joined = torch.cat(list(shares), dim=1)
    rows = joined.new_empty(world(), *joined.shape)
    dist.all_gather(list(rows), joined)
    return _apart(rows.flatten(0, 1), shares)


def reduce_scatter(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return for each tensor ``(P * world, d)`` of one dtype the sums over the processes of this one's rows ``(P, d)``.

    They are summed in the order of the ranks: the same bits in every run.
    """
    if world() == 1:
        return list(gradients)
    joined = torch.cat(list(gradients), dim=1)
    # As many bytes as a reduce-scatter, whose name changes between releases and whose order of summing is its own.
    received = torch.empty_like(joined)
    dist.all_to_all_single(received, joined)
    return _apart(received.view(world(), -1, joined.shape[1]).sum(0), gradients)


def _apart(joined: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """Return the columns of ``(rows, d + d + ...)`` that were those of `parts`."""
    return [columns.contiguous() for columns in joined.split([part.shape[1] for part in parts], dim=1)]
