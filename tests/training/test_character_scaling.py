"""Gradients of characters' vectors, each scaled by how large that character's are as a rule."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glyphcrm.errors import UserError
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.training.character_scaling import BETA, CharacterScaling, add_to
from tests.robustness.processes import run_ranks
from tests.training.test_loop import plan, run, same

ROWS, WIDTH = 12, 5
scaled_plan = partial(plan, character_scaling=0.5)


def scaling(power: float) -> CharacterScaling:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    add_to(optimizer, ROWS, power, torch.device("cpu"))
    found = CharacterScaling.of(optimizer)
    assert found is not None
    return found


def expected(steps: list[tuple[list[int], npt.NDArray[np.float64]]], power: float) -> npt.NDArray[np.float64]:
    """Scale the last step's gradients ``(vectors, characters, width)``, in float64."""
    mean = np.zeros((3, ROWS))
    for ids, gradients in steps:
        mean *= BETA
        for vector in range(3):
            for i, row in enumerate(ids):
                mean[vector, row] += (1 - BETA) * np.mean(gradients[vector, i] ** 2)
    scaled = gradients / np.sqrt(mean[:, ids, None]) ** power
    return np.stack(
        [new * np.linalg.norm(old) / np.linalg.norm(new) for old, new in zip(gradients, scaled, strict=True)]
    )


@settings(deadline=None, max_examples=30)
@given(
    power=st.sampled_from([0.25, 0.5, 1.0]),
    characters=st.lists(st.sets(st.integers(0, ROWS - 1), min_size=1), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_scaled_by_the_running_root_mean_square(
    power: float, characters: list[set[int]], padding: int, seed: int
) -> None:
    """Of each character and vector; the norm of all stays; what is repeated, without gradients, counts once."""
    random = np.random.default_rng(seed)
    steps = []
    for chosen in characters:
        sizes = 10 ** random.uniform(-6, 2, (3, len(chosen), 1))  # rare beside frequent
        steps.append((sorted(chosen), sizes * random.normal(size=(3, len(chosen), WIDTH))))
    scale = scaling(power)
    for ids, gradients in steps:
        repeated = torch.tensor([*ids, *[ids[-1]] * padding])
        given = torch.cat([torch.from_numpy(gradients), torch.zeros(3, padding, WIDTH, dtype=torch.float64)], 1)
        found = torch.stack(scale(repeated, list(given)))
    assert not found[:, len(ids) :].any()
    np.testing.assert_allclose(found[:, : len(ids)], expected(steps, power), rtol=1e-4)


def test_a_model_of_one_block_reads_two_vectors_and_nothing_stays_nothing() -> None:
    scale = scaling(0.5)
    found = scale(torch.tensor([3, 4]), [torch.zeros(2, WIDTH), torch.ones(2, WIDTH)])
    assert len(found) == 2 and not found[0].any()
    torch.testing.assert_close(found[1], torch.ones(2, WIDTH))


def scaled_by(rank: int, folder: Path, steps: list[tuple[Tensor, list[Tensor]]]) -> None:
    """Save what each of two processes makes of its shares."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    scale = scaling(0.5)
    found = [scale(ids, [gradient.chunk(2)[rank] for gradient in gradients]) for ids, gradients in steps]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_scale_as_one(tmp_path: Path) -> None:
    """A character moves between processes from step to step, and is known to both."""
    torch.manual_seed(0)
    steps = [
        (torch.tensor(ids), list(torch.randn(3, 4, WIDTH))) for ids in ([0, 3, 5, 9], [3, 5, 9, 11], [1, 2, 9, 10])
    ]
    run_ranks(scaled_by, (tmp_path, steps), 2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    scale = scaling(0.5)
    for number, (ids, gradients) in enumerate(steps):
        for vector, whole in enumerate(scale(ids, gradients)):
            parts = torch.cat([half[number][vector] for half in halves])
            torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)


def test_a_run_goes_on_bit_for_bit_and_learns_otherwise_than_without(tmp_path: Path) -> None:
    """The squares are in the checkpoint: a run that had to begin them anew would scale otherwise."""
    whole, history = run(tmp_path / "whole", scaled_plan())
    for end in (3, 5, 8):
        continued, told = run(tmp_path / "parts", scaled_plan(end=end))
    assert same(continued, whole) and told == history
    plain, _ = run(tmp_path / "plain", plan())
    assert not same(plain, whole)


def test_micro_batches_are_scaled_together(tmp_path: Path) -> None:
    """One batch of a step, or several: the gradients are the step's."""
    found = [run(tmp_path / str(cut), scaled_plan(micro_batch_size=cut), cut=cut, dropout=0.0)[0] for cut in (2, 4)]
    for (name, mine), other in zip(found[0].named_parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "words",
    [
        "--arch bert --character-scaling 0.5",
        "--ablation free-glyphs --character-scaling 0.5",
        "--character-scaling 1.5",
        "--glyph-channels 0",
        "--arch bert --glyph-channels 64",
        "--init checkpoints/glyphcrm-tiny --glyph-channels 64",
    ],
)
def test_options_that_change_nothing_are_refused(words: str) -> None:
    with pytest.raises(UserError, match=words.split()[-2]):
        PretrainOptions.parse(words.split())
