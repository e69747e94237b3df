"""The kernels for Hopper on a Hopper GPU, against float64; elsewhere test_hopper.py runs them in an emulator."""

from __future__ import annotations

import pytest
import torch
from glyphcrm_kernels import glyph_conv
from glyphcrm_kernels._shared.gpus import hopper_obstacle

from tests.kernels.checks import DEVICE, GuardedBuffers
from tests.kernels.conv.test_triton import convolution, hold_against_truth, run

if found := hopper_obstacle(torch.empty(0, device=DEVICE)):
    pytest.skip(found, allow_module_level=True)

LAYERS = [(48, False), (40, False), (32, False), (32, True)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("side", "pool"), LAYERS)
@pytest.mark.parametrize("images", [1, 37])
def test_layers_of_hanglyph(buffers: GuardedBuffers, dtype: torch.dtype, side: int, pool: bool, images: int) -> None:
    """Output and every gradient, of groups of images that are full and not."""
    inputs, cotangent = convolution(0, dtype, images, 64, 64, side, side, size=9, with_residual=side == 32)
    hold_against_truth(inputs, cotangent, buffers, backend="hopper", relu=True, pool=pool)


def test_nothing_is_random() -> None:
    inputs, cotangent = convolution(1, torch.bfloat16, 200, 64, 64, 32, 32, size=9)
    first, second = (run(inputs, cotangent, "hopper", pool=True, relu=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@torch.no_grad()
def test_a_cuda_graph_reads_what_lies_there_when_it_is_replayed() -> None:
    """The descriptors of TMA are made at the launch, and hold addresses."""
    (x, weight, bias, _), _ = convolution(2, torch.bfloat16, 9, 64, 64, 48, 48, size=9)
    glyph_conv(x, weight, bias, backend="hopper")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = glyph_conv(x, weight, bias, backend="hopper")
    x.copy_(x.flip(0))
    graph.replay()
    assert torch.equal(out, glyph_conv(x, weight, bias, backend="hopper"))
