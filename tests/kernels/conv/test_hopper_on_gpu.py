"""The kernels for Hopper on a Hopper GPU: the trial, with guarded buffers; elsewhere an emulator runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from glyphcrm_kernels._shared.gpus import hopper_obstacle
from glyphcrm_kernels.conv import trial
from glyphcrm_kernels.conv.hopper_tiles import DTYPES
from torch import Tensor

from tests.kernels.checks import DEVICE, GuardedBuffers

if found := hopper_obstacle(torch.empty(0, device=DEVICE)):
    pytest.skip(found, allow_module_level=True)

layers = pytest.mark.parametrize(("side", "pool"), trial.LAYERS)


@layers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("images", trial.IMAGES)
def test_layers_of_hanglyph(
    buffers: GuardedBuffers,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    side: int,
    pool: bool,
    images: int,
) -> None:
    """Output and every gradient, of groups of images that are full and not, with and without NaN."""
    example = trial.example

    def guarded(*arguments: Any, **options: Any) -> tuple[list[Tensor], Tensor]:
        inputs, cotangent = example(*arguments, **options)
        return [buffers.place(tensor) for tensor in inputs], buffers.place(cotangent)

    monkeypatch.setattr(trial, "example", guarded)
    trial.try_layer(side, pool, dtype, images)


@layers
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_beside_triton(dtype: torch.dtype, side: int, pool: bool) -> None:
    """The same bits twice and in a CUDA graph, whose descriptors for TMA hold the addresses of its recording."""
    trial.try_step(side, pool, dtype)
