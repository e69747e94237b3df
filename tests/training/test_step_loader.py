"""What the processes read together is the run's samples, each once and in their step."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.utils.data import Dataset

from glyphcrm.training.machine import Machine
from glyphcrm.training.step_loader import (
    START_METHOD,
    Batch,
    PaddedMicroBatches,
    StepShares,
    micro_batches_of_steps,
)


def machine(rank: int, world: int) -> Machine:
    return Machine(torch.device("cpu"), rank=rank, world=world)


@given(
    first=st.integers(0, 5),
    steps=st.integers(0, 5),
    micro=st.integers(1, 4),
    accumulated=st.integers(1, 4),
    world=st.integers(1, 4),
)
def test_the_shares_of_a_step_are_the_step(first: int, steps: int, micro: int, accumulated: int, world: int) -> None:
    size = micro * accumulated * world
    shares = [list(StepShares(first, first + steps, size, micro, machine(rank, world))) for rank in range(world)]
    for number, of_step in enumerate(zip(*shares, strict=True), first):
        assert all(len(share) == micro * accumulated for share in of_step)
        # In pieces of a micro-batch they go round.
        pieces = [share[i : i + micro] for i in range(0, micro * accumulated, micro) for share in of_step]
        assert [position for piece in pieces for position in piece] == list(range(number * size, (number + 1) * size))
    assert all(len(share) == steps for share in shares)


class Positions(Dataset[int]):
    """Each sample is its position."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, position: int) -> int:
        return position


def collate(samples: Sequence[int]) -> Batch:
    return {"x": torch.tensor(samples), "longest": max(samples)}


@pytest.mark.parametrize("workers", [0, 2])
def test_micro_batches_come_in_order_as_tensors_and_numbers(workers: int) -> None:
    shares = StepShares(1, 3, batch_size=6, micro_batch_size=3, machine=machine(0, 1))
    steps = list(micro_batches_of_steps(Positions(), shares, PaddedMicroBatches(collate, 4), workers))
    assert [[batch["x"].tolist() for batch in step] for step in steps] == [
        [[6, 7, 8, 9], [10, 11]],
        [[12, 13, 14, 15], [16, 17]],
    ]
    assert [[batch["longest"] for batch in step] for step in steps] == [[9, 11], [15, 17]]


def test_ctrl_c_does_not_end_a_data_loading_process() -> None:
    """It reaches the whole process group; the training process finishes its step, and its readers with it."""

    class Interrupted(Positions):
        def __getitem__(self, position: int) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return position

    shares = StepShares(0, 2, batch_size=2, micro_batch_size=2, machine=machine(0, 1))
    steps = micro_batches_of_steps(Interrupted(), shares, PaddedMicroBatches(collate, 2), workers=1)
    assert [step[0]["x"].tolist() for step in steps] == [[0, 1], [2, 3]]


@pytest.mark.skipif(START_METHOD is None, reason="forks are unsafe here")
def test_data_loading_processes_are_forked_whatever_the_default_is() -> None:
    """A fork server, the default since Python 3.14, would import everything once more, and could not be given this."""

    class Local(Positions):
        pass

    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        shares = StepShares(0, 1, batch_size=2, micro_batch_size=2, machine=machine(0, 1))
        steps = list(micro_batches_of_steps(Local(), shares, PaddedMicroBatches(collate, 2), workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert steps[0][0]["x"].tolist() == [0, 1]
