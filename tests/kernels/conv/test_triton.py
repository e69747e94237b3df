"""glyph_conv against float64: forward, every gradient, every tile table, ties, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from glyphcrm_kernels import glyph_conv
from glyphcrm_kernels._shared import targets
from glyphcrm_kernels._shared.optional_triton import INTERPRETED
from glyphcrm_kernels.conv import tiles
from glyphcrm_kernels.conv import triton as op
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.checks import DEVICE, GuardedBuffers, assert_true, gradients


def convolution(
    seed: int,
    dtype: torch.dtype,
    images: int = 2,
    channels: int = 16,
    outputs: int = 16,
    height: int = 12,
    width: int = 14,
    size: int = 3,
    padding: int = 0,
    with_residual: bool = True,
) -> tuple[list[Tensor], Tensor]:
    """Return x, weight, bias, perhaps residual, and a gradient for the output before pooling.

    What goes into the ReLU stays half a unit away from 0, and with a residual the four values of a
    pooling window half a unit from each other: rounding must not decide where gradients go.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = randn(images, channels, height, width).to(dtype)
    weight = (randn(outputs, channels, size, size) * (0.5 / (channels * size * size) ** 0.5)).to(dtype)
    bias = (torch.randint(0, 2, (outputs,), generator=generator) * 10.0 - 5.0).to(dtype)
    convolved = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    inputs = [x, weight, bias]
    if with_residual:
        steps = torch.rand(convolved.shape, generator=generator).argsort(-1).argsort(-1)
        rows = torch.arange(convolved.shape[2]).view(-1, 1) % 2
        wanted = (steps * 2 + rows).double() - convolved.shape[-1] + 0.5
        inputs.append((wanted - convolved).to(dtype))
    cotangent = randn(*convolved.shape).to(dtype)
    return [tensor.to(DEVICE).requires_grad_() for tensor in inputs], cotangent.to(DEVICE)


def run(
    inputs: list[Tensor], cotangent: Tensor, backend: str, pool: bool = False, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """Return the output and the gradients of all inputs."""
    residual = inputs[3] if len(inputs) > 3 else None
    out = glyph_conv(*inputs[:3], residual=residual, pool=pool, backend=backend, **options)
    if pool:
        cotangent = F.avg_pool2d(cotangent.double(), 2).to(cotangent.dtype)
    return out, gradients(out, inputs, [cotangent])


def hold_against_truth(
    inputs: list[Tensor], cotangent: Tensor, buffers: GuardedBuffers, backend: str = "triton", **options: Any
) -> None:
    truth = run([t.detach().double().requires_grad_() for t in inputs], cotangent.double(), "reference", **options)
    pytorch = run(inputs, cotangent, "reference", **options)
    out, found = run([buffers.place(t) for t in inputs], cotangent, backend, **options)
    assert_true("out", out, truth[0], pytorch[0])
    for name, *results in zip(("dx", "dweight", "dbias", "dresidual"), found, truth[1], pytorch[1], strict=False):
        assert_true(name, *results)
    buffers.assert_guards_unchanged()


@given(
    seed=st.integers(0, 2**31),
    family=st.sampled_from(["ampere", "hopper", "blackwell", "cdna", "interpreter"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    images=st.integers(0, 3),
    channels=st.sampled_from([4, 16, 32, 64]),
    outputs=st.sampled_from([4, 16, 32]),
    height=st.integers(9, 11),
    width=st.integers(9, 12),
    size=st.sampled_from([1, 3, 9]),
    padding=st.integers(0, 1),
    relu=st.booleans(),
    pool=st.booleans(),
    with_residual=st.booleans(),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_forward_and_gradients_are_true(
    buffers: GuardedBuffers,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    family: str,
    dtype: torch.dtype,
    relu: bool,
    pool: bool,
    with_residual: bool,
    **shape: int,
) -> None:
    """Any size, and on a CPU the tiles of every architecture."""
    shape["padding"] = min(shape["padding"], shape["size"] - 1)
    if shape["size"] == 9:  # takes the interpreter a second a picture
        shape["images"] = min(shape["images"], 1)
    if pool:  # the kernels pool even outputs, and only a residual keeps a window's values apart
        with_residual = True
        for side in ("height", "width"):
            shape[side] += (shape[side] - shape["size"] + 1) % 2
    if INTERPRETED:
        monkeypatch.setattr(tiles, "family", lambda target: family)
    inputs, cotangent = convolution(seed, dtype, with_residual=with_residual, **shape)
    hold_against_truth(inputs, cotangent, buffers, relu=relu, pool=pool, padding=shape["padding"])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param({"height": 48, "width": 48, "size": 9, "images": 1}, {"relu": True}, id="first-9x9"),
        pytest.param(
            {"height": 32, "width": 32, "size": 9, "images": 2}, {"relu": True, "pool": True}, id="pooled-9x9"
        ),
        pytest.param(
            {"channels": 64, "outputs": 128, "padding": 1, "with_residual": False}, {"relu": True}, id="expand"
        ),
        pytest.param(
            {"channels": 128, "outputs": 128, "height": 8, "width": 8}, {"relu": True, "pool": True}, id="last"
        ),
    ],
)
def test_layers_of_hanglyph(buffers: GuardedBuffers, shape: dict[str, int], options: dict[str, Any]) -> None:
    """The convolutions of the model, at their sizes."""
    inputs, cotangent = convolution(0, torch.float32, **shape)
    hold_against_truth(inputs, cotangent, buffers, padding=shape.get("padding", 0), **options)


@pytest.mark.parametrize("backend", ["auto", "triton", "reference"])
def test_without_a_bias_it_is_zero(backend: str) -> None:
    (x, weight, bias), _ = convolution(8, torch.float32, size=5, height=12, width=12, with_residual=False)
    expected = glyph_conv(x, weight, torch.zeros_like(bias), relu=True, backend=backend)
    assert torch.equal(glyph_conv(x, weight, relu=True, backend=backend), expected)


def test_memory_order_does_not_matter() -> None:
    """NCHW, sliced and broadcast tensors give what their channels-last copies give."""
    inputs, cotangent = convolution(1, torch.float32)
    expected = run(inputs, cotangent, "triton", relu=True)
    images, channels, height, width = inputs[0].shape
    x = torch.zeros(images, channels, height, 2 * width, device=DEVICE)[..., ::2]
    x.copy_(inputs[0].detach())
    weight = inputs[1].detach().to(memory_format=torch.channels_last)
    strided = [x.requires_grad_(), weight.requires_grad_(), *inputs[2:]]
    out, found = run(strided, cotangent.transpose(2, 3).contiguous().transpose(2, 3), "triton", relu=True)
    assert torch.equal(out, expected[0]) and out.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(found, expected[1], strict=True))
    assert found[1].stride() == weight.stride()  # as DistributedDataParallel's buckets want it

    for bias in (torch.randn(32, device=DEVICE)[::2], torch.randn(1, device=DEVICE).expand(16)):
        strided = [*inputs[:2], bias, inputs[3]]
        found, copied = (
            glyph_conv(*tensors[:3], residual=inputs[3], backend="triton")
            for tensors in (strided, [*inputs[:2], bias.contiguous()])
        )
        assert torch.equal(found, copied)

    ones = torch.ones((), device=DEVICE).expand_as(cotangent)
    for one, other in zip(
        run(inputs, ones, "triton", relu=True)[1], run(inputs, ones.contiguous(), "triton", relu=True)[1], strict=True
    ):
        assert torch.equal(one, other)


def test_of_equal_values_the_first_wins() -> None:
    """In flat regions the gradient goes where `torch.nn.functional.max_pool2d` sends it."""
    x = torch.ones(1, 4, 6, 6, device=DEVICE)
    weight, bias = torch.zeros(4, 4, 3, 3, device=DEVICE), torch.ones(4, device=DEVICE)
    residual = torch.randint(0, 2, (1, 4, 4, 4), device=DEVICE).float()
    residual[:, 0] = 0
    inputs = [t.requires_grad_() for t in (x, weight, bias, residual)]
    cotangent = torch.randn(1, 4, 4, 4, device=DEVICE)
    (_, found), (_, expected) = (run(inputs, cotangent, b, relu=True, pool=True) for b in ("triton", "reference"))
    assert torch.equal(found[3], expected[3])


def test_values_that_are_equal_once_rounded_tie() -> None:
    """The winner is sought among what is stored: 256, 256.25, 256.5 and 256.75 are one bfloat16."""
    x = torch.tensor([[0.0, 0.25], [0.5, 0.75]], device=DEVICE).expand(1, 4, 2, 2).bfloat16().requires_grad_()
    weight = torch.eye(4, device=DEVICE).view(4, 4, 1, 1).bfloat16()
    bias = torch.full((4,), 256.0, device=DEVICE).bfloat16()
    glyph_conv(x, weight, bias, pool=True, backend="triton").float().sum().backward()
    assert torch.equal(x.grad[0, 0].float().cpu(), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_nan_wins_over_infinity() -> None:
    """In every order of the two in a window, and of two of them, with what is smaller beside: as in PyTorch."""
    values = torch.tensor([float("nan"), float("inf"), 1.0, float("-inf")], device=DEVICE)
    windows = torch.cartesian_prod(*[values] * 4).view(64, 4, 2, 2)
    zeros = torch.zeros(64, 4, 2, 2, device=DEVICE)
    parameters = torch.zeros(4, 4, 1, 1, device=DEVICE), torch.zeros(4, device=DEVICE)
    results = []
    for backend in ("triton", "reference"):
        residual = windows.clone().requires_grad_()
        out = glyph_conv(zeros, *parameters, residual=residual, pool=True, backend=backend)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), residual)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("place", range(4))
def test_nan_is_not_hidden(place: int) -> None:
    """One NaN reaches the pooled output and, through the ReLU, the gradient, as in PyTorch."""
    x = torch.tensor([5.0, 2.0, 1.0, 3.0], device=DEVICE).index_fill(0, torch.tensor(place, device=DEVICE), torch.nan)
    x = x.view(1, 1, 2, 2).expand(1, 4, 2, 2)
    weight = torch.eye(4, device=DEVICE).view(4, 4, 1, 1)
    results = []
    for backend in ("triton", "reference"):
        residual = x.clone().requires_grad_()
        zeros = torch.zeros_like(x)
        out = glyph_conv(
            zeros, weight, torch.zeros(4, device=DEVICE), residual=residual, relu=True, pool=True, backend=backend
        )
        results.append((out.detach(), *torch.autograd.grad(out.sum(), residual)))
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected) or torch.equal(actual.isnan(), expected.isnan())
    assert results[0][0].isnan().all() and results[0][1].flatten(2)[..., place].ne(0).all()


def test_programs_come_round_again(monkeypatch: pytest.MonkeyPatch, buffers: GuardedBuffers) -> None:
    """More pixels than the epilogue's backward has programs at a time."""
    monkeypatch.setattr(targets, "multiprocessors", lambda device: 1)
    inputs, cotangent = convolution(7, torch.float32, 2, 4, 4, 40, 40, size=1)
    target = targets.target_of(inputs[0].device)
    programs = tiles.epilogue_programs(target, 1, 2 * 40 * 40, 4)
    assert programs * tiles.epilogue_block(target, 4) < 2 * 40 * 40
    hold_against_truth(inputs, cotangent, buffers, relu=True)


def test_nothing_is_random() -> None:
    """Twice the same, bit for bit: partial sums are added in a fixed order."""
    inputs, cotangent = convolution(2, torch.float32, images=5)
    first, second = (run(inputs, cotangent, "triton", relu=True, pool=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.skipif(not INTERPRETED, reason="no GPU has use for these kernels in float64")
@pytest.mark.parametrize("options", [{"relu": True, "pool": True}, {"padding": 1}], ids=str)
def test_gradcheck(options: dict[str, Any]) -> None:
    """Derivatives by finite differences, in float64."""
    inputs, _ = convolution(3, torch.float64, 1, 4, 4, 6, 6, padding=options.get("padding", 0))

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return glyph_conv(x, weight, bias, residual=residual, backend="triton", **options)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_opcheck() -> None:
    """Schemas, fake tensors and autograd registration of all four operators."""
    (x, weight, bias, residual), cotangent = convolution(4, torch.float32, channels=4, outputs=8, height=6, width=6)
    arguments = (x, weight, bias, residual, True, True, 0, False)
    torch.library.opcheck(op._glyph_conv.custom, arguments)
    out, winner = (t.detach() for t in op._glyph_conv.custom(*arguments))
    dout, g = torch.randn_like(out), torch.randn_like(cotangent)
    torch.library.opcheck(op._epilogue_backward.custom, (dout, out, winner, True, True, torch.float32))
    torch.library.opcheck(op._data_gradient.custom, (g, weight.detach(), 0, False))
    torch.library.opcheck(op._weight_gradient.custom, (g, x.detach(), weight.detach(), 0, False))


def test_compiles_without_a_graph_break() -> None:
    """`torch.compile(fullgraph=True)` sees one operator and gives the same."""
    inputs, cotangent = convolution(5, torch.float32)

    def function(*tensors: Tensor) -> Tensor:
        return glyph_conv(*tensors[:3], residual=tensors[3], relu=True, pool=True, backend="triton")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    cotangent = F.avg_pool2d(cotangent, 2)
    for one, other in zip(
        gradients(compiled(*inputs), inputs, [cotangent]),
        gradients(function(*inputs), inputs, [cotangent]),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_autocast(backend: str) -> None:
    """Under autocast the work is done in its dtype, and gradients come back in each tensor's own."""
    inputs, cotangent = convolution(6, torch.float32)
    with torch.autocast(DEVICE, dtype=torch.float16):
        out, found = run(inputs, cotangent.half(), backend, relu=True)
    assert out.dtype == torch.float16 and all(g.dtype == torch.float32 for g in found)
    truth = run([t.detach().double().requires_grad_() for t in inputs], cotangent.double(), "reference", relu=True)
    for actual, true in zip((out, *found), (truth[0], *truth[1]), strict=True):
        assert (actual.double() - true).norm() / true.norm() < 2e-3


def shapes(**changed: tuple[int, ...]) -> dict[str, Tensor]:
    """Return arguments that fit, but for the changed shapes."""
    fitting = {"x": (1, 4, 6, 6), "weight": (8, 4, 3, 3), "bias": (8,), "residual": (1, 8, 4, 4)}
    return {name: torch.zeros(shape, device=DEVICE) for name, shape in {**fitting, **changed}.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**shapes(x=(4, 6, 6))}, r"x has shape \(4, 6, 6\)"),
        ({**shapes(weight=(8, 5, 3, 3))}, "weight has shape"),
        ({**shapes(bias=(4,))}, "bias has shape"),
        ({**shapes(residual=(1, 8, 2, 2))}, "residual has shape"),
        ({**shapes(), "padding": 3}, "padding=3"),
        ({**shapes(x=(1, 4, 2, 6))}, "x has 2x6 pixels"),
        ({**shapes(), "backend": "cuda"}, "backend='cuda'"),
        (
            {**shapes(), "weight": torch.zeros(8, 4, 3, 3, dtype=torch.float16, device=DEVICE)},
            "weight is torch.float16",
        ),
        ({**shapes(), "bias": torch.zeros(8, device="meta")}, "bias is on meta"),
        ({**shapes(x=(1, 5, 6, 6), weight=(8, 5, 3, 3)), "backend": "triton"}, "x has 5 channels"),
        ({**shapes(x=(1, 4, 7, 6), residual=(1, 8, 5, 4)), "pool": True, "backend": "triton"}, "an even output"),
        ({n: t.to(torch.int32) for n, t in shapes().items()}, "x is torch.int32"),
        ({**shapes(), "bias": torch.zeros(8, dtype=torch.bool, device=DEVICE)}, "bias is torch.bool"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    """One line that says what is wrong with which argument."""
    with pytest.raises(ValueError, match=message):
        glyph_conv(**{"relu": True, **arguments})


def test_what_the_kernels_do_not_take_goes_to_the_reference() -> None:
    """With "auto", five channels and an odd output work on any machine."""
    out = glyph_conv(**{**shapes(x=(1, 5, 7, 6), weight=(8, 5, 3, 3), residual=(1, 8, 5, 4)), "pool": True})
    assert out.shape == (1, 8, 2, 2)
