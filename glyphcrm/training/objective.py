"""What a training must know to run: what it is for, and its course."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from glyphcrm.training.optimizer import OptimizerSettings
from glyphcrm.training.progress import Entry
from glyphcrm.training.step_loader import Batch, MakeMicroBatches


class Objective(Protocol):
    """What a model is trained for."""

    @property
    def samples(self) -> Dataset[Any]:
        """The samples of the whole run, in its order."""
        ...

    @property
    def micro_batches(self) -> MakeMicroBatches:
        """What makes a process's share of a step into micro-batches, in a data loading process."""
        ...

    @property
    def sums(self) -> Tensor:
        """What `loss` has measured since the last log: (k,) float64, on the device."""
        ...

    def counts(self, batch: Batch) -> Tensor:
        """Return (n,) int64: over how many labels, of each kind, a micro-batch's loss is a mean."""
        ...

    def loss(self, model: PreTrainedModel, batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
        """Return a micro-batch's share, (), of the step's loss.

        `inputs` is `batch` as the model takes it; `totals` (n,) float32 are the `counts` of the whole step, over all
        micro-batches and processes, 1 or more. Nothing here may wait for the device.
        """
        ...

    def entry(self, sums: Sequence[float], seconds: float) -> Entry:
        """Return what a log says of `sums` over all processes and the `seconds` that they were measured in."""
        ...

    def validate(self, model: PreTrainedModel) -> Entry:
        """Return what a validation has come to; names begin with "eval_". `model` is in evaluation mode."""
        ...

    def is_over(self, history: Sequence[Entry]) -> bool:
        """Whether validations have shown that no further step is worth while."""
        ...

    def kept(self, steps: Sequence[int], history: Sequence[Entry]) -> set[int]:
        """Return the steps, of those that have checkpoints, oldest first, whose checkpoints are kept."""
        ...

    def status(self, history: Sequence[Entry]) -> str:
        """Return what the progress bar shows after an entry."""
        ...

    def remark(self, entry: Entry) -> str | None:
        """Return a line of its own for an entry, if it deserves one."""
        ...


@dataclass(frozen=True)
class Regularly(Container[int]):
    """The steps 0, `every`, twice `every` ..., and the last one; however many they are, they take no memory."""

    every: int
    last: int

    def __contains__(self, step: object) -> bool:
        return step == self.last or step in range(0, self.last, self.every)


@dataclass(frozen=True)
class Plan:
    """The course of a run.

    Attributes:
        steps: of the whole schedule.
        batch_size: samples a step, over all processes; a multiple of processes x `micro_batch_size`.
        micro_batch_size: samples that go to one process at a time.
        optimizer: its settings.
        logs, validations, saves: the steps after which there is one; with 0 among the validations, before the first.
        save_minutes: a run also saves with the first log so long after it last did.
        end: the step after which this call stops, with a checkpoint; `steps` or less.
        seed: of dropout.
        workers: data loading processes of each process.
        gradient_checkpointing: compute activations anew in the backward pass.
        cuda_graph: record the steps; micro-batches have few shapes then, and the objective's loss is as
            `GraphedGradients` wants it.
    """

    steps: int
    batch_size: int
    micro_batch_size: int
    optimizer: OptimizerSettings
    logs: Container[int]
    validations: Container[int]
    saves: Container[int]
    end: int
    save_minutes: float | None = None
    seed: int = 0
    workers: int = 0
    gradient_checkpointing: bool = False
    cuda_graph: bool = False
