"""What each process reads of a run's samples: its share of every optimiser step, cut into micro-batches."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from glyphcrm.training.machine import Machine

Batch = dict[str, Any]  # of tensors, mostly
# The samples of a process's share of a step to micro-batches.
MakeMicroBatches = Callable[[Sequence[Any]], list[Batch]]
# How processes begin: a fork is there at once. Python 3.14 and a run that was itself started by a fork server would
# otherwise start a server here, too, that imports everything once more. On macOS forks are unsafe.
START_METHOD = "fork" if sys.platform == "linux" else None


@dataclass(frozen=True)
class PaddedMicroBatches:
    """Cuts a share of a step into pieces of `size` samples, in their order, and collates each."""

    collator: Callable[[Sequence[Any]], Batch]
    size: int

    def __call__(self, samples: Sequence[Any]) -> list[Batch]:
        """Return the micro-batches; the last one may be smaller."""
        return [self.collator(samples[i : i + self.size]) for i in range(0, len(samples), self.size)]


class StepShares(Sampler[list[int]]):
    """The positions of this process's samples in each step from `first` to `steps`, exclusively.

    Step s has the positions s * batch_size ... (s + 1) * batch_size - 1 of the run; in pieces of `micro_batch_size`
    they go to the processes in turn.
    """

    def __init__(self, first: int, steps: int, batch_size: int, micro_batch_size: int, machine: Machine) -> None:
        self._steps = range(first, steps)
        self._batch_size, self._micro_batch_size = batch_size, micro_batch_size
        self._rank, self._world = machine.rank, machine.world

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            yield [
                step * self._batch_size + i
                for i in range(self._batch_size)
                if i // self._micro_batch_size % self._world == self._rank
            ]


def micro_batches_of_steps(
    dataset: Dataset[Any], shares: Sampler[list[int]], make: MakeMicroBatches, workers: int
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each share, on the CPU, read ahead by `workers` processes."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=shares,
        num_workers=workers,
        collate_fn=_AsArrays(make),
        worker_init_fn=_ignore_ctrl_c,
        multiprocessing_context=START_METHOD if workers else None,
    )
    # Made here, not at the first step: it draws from PyTorch's generator, whose state a run that continues restores.
    steps = iter(loader)
    return ([_as_tensors(batch) for batch in share] for share in steps)


@dataclass(frozen=True)
class _AsArrays:
    """Hands micro-batches on as NumPy arrays.

    As tensors every one of them would take a file descriptor and a place in /dev/shm, of which a container has 64 MB.
    """

    make: MakeMicroBatches

    def __call__(self, samples: Sequence[Any]) -> list[Batch]:
        return [
            {name: value.numpy() if isinstance(value, Tensor) else value for name, value in batch.items()}
            for batch in self.make(samples)
        ]


def _as_tensors(batch: Batch) -> Batch:
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}


def _ignore_ctrl_c(worker: int) -> None:
    """Let Ctrl-C, which reaches a whole process group, stop the training process alone; it ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
