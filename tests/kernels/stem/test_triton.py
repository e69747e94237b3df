"""Glyph stem: against a three-channel convolution in float64, exact ties, and what PyTorch asks of an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from glyphcrm_kernels import glyph_stem
from glyphcrm_kernels._shared import targets
from glyphcrm_kernels.stem import tiles
from glyphcrm_kernels.stem.triton import _glyph_stem, _glyph_stem_backward
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling.hanglyph import position_map
from tests.kernels.checks import DEVICE, GuardedBuffers, assert_true, gradients

BLANK = 0  # the row of the blank image in every atlas here


def make_inputs(channels: int, dtype: torch.dtype, atlas_rows: int = 4) -> dict[str, Tensor]:
    """Random bits, weights and bias, and the paper's position map; seeded by the caller."""
    bitmaps = torch.randint(0, 256, (atlas_rows, 288), dtype=torch.uint8)
    bitmaps[BLANK] = 0
    inputs = {
        "bitmaps": bitmaps,
        "weight": torch.randn(channels, 3, 3, 3).to(dtype).requires_grad_(),
        "bias": torch.randn(channels).to(dtype).requires_grad_(),
        "position_map": position_map("paper"),
    }
    return {name: tensor.detach().to(DEVICE).requires_grad_(tensor.requires_grad) for name, tensor in inputs.items()}


def truth_of(rows: Tensor, bitmaps: Tensor, weight: Tensor, bias: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: a three-channel convolution, ReLU and pooling in float64, on the CPU."""
    ink = torch.from_numpy(np.unpackbits(bitmaps.cpu().numpy(), axis=1)).view(-1, 1, 48, 48)[rows.cpu().long()]
    channels = torch.cat([ink.double(), positions.cpu().double().expand(len(rows), -1, -1, -1)], 1)
    activation = F.relu(F.conv2d(channels, weight, bias, padding=1))
    return activation, F.max_pool2d(activation, 2)


def double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu().requires_grad_()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as the output": lambda cotangent: cotangent,
    "channels first": lambda cotangent: cotangent.contiguous(),
    "expanded": lambda cotangent: cotangent[:, :1, :, :1].expand_as(cotangent),
}


@pytest.mark.parametrize("backend", ["triton", "reference"])
@given(
    images=st.integers(0, 3),
    channels=st.sampled_from([4, 16]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    rows_dtype=st.sampled_from([torch.int64, torch.int32]),
    used=st.sampled_from([(0, 1), (0,), (1,)]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    multiprocessors=st.sampled_from([2, 6]),
    seed=st.integers(0, 99),
)
@example(5, 4, torch.float32, torch.int64, (0, 1), "channels first", 6, 0)  # more splits than images need
@example(2, 64, torch.float16, torch.int32, (0, 1), "as the output", 2, 0)
@example(0, 16, torch.float16, torch.int64, (0, 1), "as the output", 2, 0)
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_results_and_gradients_are_the_float64_ones(
    backend: str,
    buffers: GuardedBuffers,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    channels: int,
    dtype: torch.dtype,
    rows_dtype: torch.dtype,
    used: tuple[int, ...],
    layout: str,
    multiprocessors: int,
    seed: int,
) -> None:
    if dtype == torch.float64 and DEVICE == "cuda":
        dtype = torch.float32
    torch.manual_seed(seed)
    monkeypatch.setattr(targets, "multiprocessors", lambda device: multiprocessors)
    inputs = {name: buffers.place(tensor) for name, tensor in make_inputs(channels, dtype).items()}
    rows = buffers.place(torch.randint(0, 4, (images,)).to(DEVICE, rows_dtype))  # unsorted, repeated
    leaves = [inputs["weight"], inputs["bias"]]

    outputs = glyph_stem(rows, **inputs, backend=backend)
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs) or images == 0
    pytorch = glyph_stem(rows, **inputs, backend="reference")
    true_leaves = [double(leaf) for leaf in leaves]
    truth = truth_of(rows, inputs["bitmaps"], *true_leaves, inputs["position_map"])
    for name, *results in zip(("activation", "pooled"), outputs, truth, pytorch, strict=True):
        assert_true(name, *results)

    cotangents = [LAYOUTS[layout](torch.randn_like(outputs[i])) for i in used]
    actual = gradients([outputs[i] for i in used], leaves, cotangents)
    expected = gradients([truth[i] for i in used], true_leaves, [c.double().cpu() for c in cotangents])
    baseline = gradients([pytorch[i] for i in used], leaves, cotangents)
    for name, *results in zip(("dweight", "dbias"), actual, expected, baseline, strict=True):
        assert_true(name, *results)


def test_more_images_than_a_program_takes(monkeypatch: pytest.MonkeyPatch, buffers: GuardedBuffers) -> None:
    """Several programs along the images, and as few windows in each as on a GPU."""
    monkeypatch.setattr(tiles, "IMAGES_PER_PROGRAM", 2)
    monkeypatch.setattr(tiles, "tile", lambda target, channels, dtype: (32, 4))
    inputs = make_inputs(4, torch.float32, atlas_rows=6)
    rows = torch.tensor([4, 1, 5, 2, 3], device=DEVICE)
    outputs = glyph_stem(rows, **inputs, backend="triton")
    leaves = [double(inputs["weight"]), double(inputs["bias"])]
    truth = truth_of(rows, inputs["bitmaps"], *leaves, inputs["position_map"])
    cotangents = [torch.randn_like(output) for output in outputs]
    actual = [*outputs, *gradients(outputs, [inputs["weight"], inputs["bias"]], cotangents)]
    expected = [*truth, *gradients(truth, leaves, [c.double().cpu() for c in cotangents])]
    for one, other in zip(actual, expected, strict=True):
        assert_true("result", one, other, other.float())


def test_what_is_kept_may_come_back_in_another_memory_order() -> None:
    """`torch.autograd.graph.save_on_cpu` gives the activation back as NCHW."""
    inputs = make_inputs(4, torch.float32)
    rows = torch.tensor([1, 2], device=DEVICE)
    leaves = [inputs["weight"], inputs["bias"]]

    def run() -> list[Tensor]:
        outputs = glyph_stem(rows, **inputs, backend="triton")
        return gradients(outputs, leaves, [output.detach().cos() for output in outputs])

    expected = run()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: torch.empty(t.size(), dtype=t.dtype, device=t.device).copy_(t), lambda t: t
    ):
        found = run()
    assert all(map(torch.equal, found, expected))


def test_every_run_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(targets, "multiprocessors", lambda device: 6)
    inputs = make_inputs(4, torch.float32)
    rows = torch.tensor([3, 1], device=DEVICE)
    runs = []
    for _ in range(2):
        outputs = glyph_stem(rows, **inputs, backend="triton")
        cotangents = [output.detach().sin() for output in outputs]
        runs.append([*outputs, *gradients(outputs, [inputs["weight"], inputs["bias"]], cotangents)])
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_of_equal_maxima_takes_the_gradient(dtype: torch.dtype, buffers: GuardedBuffers) -> None:
    # Small integers are exact in every dtype, so ties are everywhere and results must be equal to the bit.
    torch.manual_seed(0)
    inputs = make_inputs(4, dtype)
    weight = torch.randint(-1, 2, (4, 3, 3, 3)).to(DEVICE, dtype).requires_grad_()
    bias = torch.tensor([0, 1, 2, -1]).to(DEVICE, dtype).requires_grad_()
    positions = torch.zeros(2, 48, 48, device=DEVICE)
    positions[0, :, 24:] = 1
    rows = torch.tensor([BLANK, 2], device=DEVICE)
    outputs = glyph_stem(rows, inputs["bitmaps"], weight, bias, positions, backend="triton")
    leaves = [double(weight), double(bias)]
    truth = truth_of(rows, inputs["bitmaps"], *leaves, positions)
    assert all(torch.equal(a.double().cpu(), b) for a, b in zip(outputs, truth, strict=True))
    # Few cotangents are not zero, so that the sums stay exact in the narrowest dtype.
    cotangents = [(torch.randint_like(a, -40, 41) / 39).trunc() for a in outputs]
    actual = gradients(outputs, [weight, bias], cotangents)
    expected = gradients(truth, leaves, [c.double().cpu() for c in cotangents])
    for name, a, b in zip(("dweight", "dbias"), actual, expected, strict=True):
        assert b.any() and b.abs().max() < 256, name
        assert torch.equal(a.double().cpu(), b), name


def test_gradcheck() -> None:
    torch.manual_seed(0)
    if DEVICE == "cuda":
        pytest.skip("the kernels take float64 in the interpreter only")
    inputs = make_inputs(4, torch.float64)

    def stem(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([1])
        return glyph_stem(rows, inputs["bitmaps"], weight, bias, inputs["position_map"], backend="triton")

    leaves = tuple(inputs[name].detach().requires_grad_() for name in ("weight", "bias"))
    assert torch.autograd.gradcheck(stem, leaves, fast_mode=True, check_undefined_grad=False)


def test_the_operators_keep_pytorchs_rules() -> None:
    torch.manual_seed(0)
    rows, bitmaps = torch.tensor([1], device=DEVICE), make_inputs(4, torch.float32)["bitmaps"]
    ink_weight = torch.randn(9, 4, device=DEVICE, requires_grad=True)
    constant = torch.randn(48, 48, 4, device=DEVICE, requires_grad=True)
    torch.library.opcheck(_glyph_stem.custom, (rows, bitmaps, ink_weight, constant, torch.float16))
    with torch.no_grad():
        activation, pooled = _glyph_stem(rows, bitmaps, ink_weight, constant, torch.float16)
    torch.library.opcheck(_glyph_stem_backward.custom, (rows, bitmaps, activation, activation, pooled, torch.float32))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_autocast_and_compilation(backend: str, atlas: GlyphAtlas) -> None:
    torch.manual_seed(0)
    inputs = make_inputs(16, torch.float32) | {"bitmaps": torch.tensor(atlas.bitmaps, device=DEVICE)}
    leaves = [inputs["weight"], inputs["bias"]]
    rows = torch.tensor([40, 7], device=DEVICE)

    def stem(rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(DEVICE, torch.bfloat16):
            return glyph_stem(rows, **inputs, backend=backend)

    eager = stem(rows)
    assert all(output.dtype == torch.bfloat16 for output in eager)
    true_leaves = [double(leaf) for leaf in leaves]
    truth = truth_of(rows, inputs["bitmaps"], *true_leaves, inputs["position_map"])
    pytorch = [output.bfloat16() for output in truth]  # no more than one rounding, or twice that
    if backend == "triton":
        for name, *results in zip(("activation", "pooled"), eager, truth, pytorch, strict=True):
            assert_true(name, *results)

    cotangents = [torch.randn_like(output) for output in eager]
    eager_gradients = gradients(eager, leaves, cotangents)
    assert all(gradient.dtype == torch.float32 for gradient in eager_gradients)
    compiled = torch.compile(stem, fullgraph=True, backend="aot_eager")(rows)
    assert all(map(torch.equal, compiled, eager))
    assert all(map(torch.equal, gradients(compiled, leaves, cotangents), eager_gradients))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bitmaps": torch.zeros(4, 287, dtype=torch.uint8)},
            r"bitmaps is \(4, 287\) torch.uint8; it must be \(N, 288",
        ),
        ({"bitmaps": torch.zeros(4, 288)}, r"bitmaps is \(4, 288\) torch.float32"),
        ({"rows": torch.zeros(1, 1, dtype=torch.int64)}, r"rows has shape \(1, 1\)"),
        ({"rows": torch.zeros(1)}, "rows is torch.float32; it must be int64 or int32"),
        ({"rows": torch.tensor([0, 4])}, r"rows holds 4; it must be in \[0, 4\)"),
        ({"rows": torch.tensor([-1, 3])}, "rows holds -1"),
        ({"weight": torch.zeros(4, 2, 3, 3)}, r"weight is \(4, 2, 3, 3\)"),
        (
            {"weight": torch.zeros(5, 3, 3, 3), "bias": torch.zeros(5)},
            "weight has 5 output channels; .* take 4, 16, 32",
        ),
        ({"bias": torch.zeros(3)}, r"bias is \(3,\) torch.float32; it must be \(4,\)"),
        ({"bias": torch.zeros(4).half()}, r"bias is \(4,\) torch.float16"),
        ({"position_map": torch.zeros(2, 47, 48)}, r"position_map is \(2, 47, 48\)"),
        ({"bias": torch.zeros(4, device="meta")}, "bias is on meta"),
        ({"backend": "cuda"}, "backend='cuda' is none of"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLYPHCRM_CHECK_INDICES", "1")
    arguments: dict[str, Any] = make_inputs(4, torch.float32) | {"rows": torch.tensor([0]), "backend": "triton"}
    arguments |= change
    if DEVICE == "cuda":
        arguments = {
            name: value.to(DEVICE) if isinstance(value, Tensor) and value.device.type != "meta" else value
            for name, value in arguments.items()
        }
    with pytest.raises(ValueError, match=f"glyph_stem: {message}"):
        glyph_stem(**arguments)


def test_auto_takes_the_reference_where_no_kernel_covers_the_channels() -> None:
    inputs = make_inputs(5, torch.float32)
    activation, pooled = glyph_stem(torch.tensor([1], device=DEVICE), **inputs)
    assert activation.shape == (1, 5, 48, 48) and pooled.shape == (1, 5, 24, 24)
