"""The kernels for Hopper in the emulator, in float64: results, faults that it must notice, and when they run."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from glyphcrm_kernels import Choice, choice, glyph_conv
from glyphcrm_kernels._shared import gpus
from glyphcrm_kernels._shared.launch import Launch
from glyphcrm_kernels._shared.targets import Target
from glyphcrm_kernels.conv import api, hopper, record
from glyphcrm_kernels.conv import hopper_tiles as tiles
from glyphcrm_kernels.conv import triton as op
from glyphcrm_kernels.conv.hopper_tiles import SIZE, Tile, WeightTile
from glyphcrm_kernels.conv.reference import glyph_conv_reference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernels.checks import DEVICE, FP32_TOLERANCE, GuardedBuffers, gradients, relative_rms
from tests.kernels.emulator import ORDERS, RELEASES, ROOT, SOURCES, EmulationError, Emulator

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the emulator takes tensors on a CPU")

EXACT = {"rtol": 1e-11, "atol": 1e-9}
WAYS = [("3.6.0", "early"), ("3.9.0", "late")]
OTHER_WAYS = [(release, order) for release in RELEASES for order in ORDERS if (release, order) not in WAYS]
in_all_ways = pytest.mark.parametrize(
    ("release", "order"), [*WAYS, *(pytest.param(*way, marks=pytest.mark.slow) for way in OTHER_WAYS)]
)


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Their trial has been passed on every GPU."""
    monkeypatch.setattr(record, "kind", lambda device_index: {})
    monkeypatch.setattr(record, "read", lambda kind: "")
    record._drawback_on.cache_clear()
    yield
    record._drawback_on.cache_clear()


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Return ``(U, C, H, W)`` or a vector in float64; four dimensions in NHWC order."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(memory_format=torch.channels_last) if len(shape) == 4 else drawn


def unwritten(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return an output before its launch: full of NaN, or of 255."""
    value = float("nan") if dtype.is_floating_point else 255
    return torch.full(shape, value, dtype=dtype).to(memory_format=torch.channels_last)


def convolve(
    tile: Tile,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    padding: int = 0,
    pool: bool = False,
    release: str = "3.9.0",
    order: str = "late",
    edit: Callable[[str], str] = lambda text: text,
) -> tuple[Tensor, Tensor | None]:
    """Return what the kernel writes, and the winners if it pools."""
    shape = F.conv2d(x[:1], weight, padding=padding).shape[1:]
    if pool:
        shape = (shape[0], shape[1] // 2, shape[2] // 2)
    out = unwritten(len(x), *shape)
    winner = unwritten(*out.shape, dtype=torch.uint8) if pool else None
    filters = weight.permute(0, 2, 3, 1).contiguous()
    with Emulator(release, order, edit) as emulator:
        emulator.run(hopper.convolution(tile, x, filters, bias, residual, out, winner, relu, padding))
    return out, winner


def weight_gradient(tile: WeightTile, g: Tensor, x: Tensor, splits: int, padding: int = 0, **way: Any) -> Tensor:
    """Return the gradient ``(K, C, k, k)`` from the kernel's parts."""
    channels = x.shape[1]
    partial = torch.full((splits, g.shape[1], SIZE, SIZE * channels), float("nan"), dtype=torch.float64)
    with Emulator(**way) as emulator:
        emulator.run(hopper.weight_gradient(tile, g, x, partial, padding))
    return partial.sum(0).unflatten(2, (SIZE, channels)).permute(0, 3, 1, 2)


@in_all_ways
@pytest.mark.parametrize(
    ("images", "height", "width", "padding", "tile"),
    [
        pytest.param(9, 16, 16, 0, Tile(8, 32, 3, 3, 4), id="one-product-a-tap"),
        pytest.param(3, 12, 32, 0, Tile(16, 64, 2, 4, 8), id="two-products-a-tap"),
        pytest.param(9, 10, 24, 0, Tile(8, 32, 3, 6, 4), id="six-slots"),
        pytest.param(9, 8, 8, 8, Tile(8, 64, 2, 2, 4), id="padded"),
        pytest.param(9, 8, 24, 8, Tile(16, 32, 2, 9, 8), id="padded-nine-slots"),
    ],
)
def test_convolution(images: int, height: int, width: int, padding: int, tile: Tile, release: str, order: str) -> None:
    """Bias, residual and ReLU, on every image, also of a last group that is not full."""
    x, weight, bias = randn(images, 64, height, width), randn(64, 64, 9, 9), randn(64)
    y = F.conv2d(x, weight, padding=padding)
    residual = randn(*y.shape, seed=1)
    out, _ = convolve(tile, x, weight, bias, residual, True, padding, release=release, order=order)
    torch.testing.assert_close(out, F.relu(y + bias[:, None, None] + residual), **EXACT)


@in_all_ways
@pytest.mark.parametrize("tile", [Tile(8, 32, 3, 6, 4), Tile(16, 64, 2, 4, 8)], ids=["one-image", "two-images"])
def test_pooling(tile: Tile, release: str, order: str) -> None:
    """The largest of each window and which it is; of equal ones (the zeros of the ReLU) the first."""
    x, weight, bias = randn(3, 64, 16, 24), randn(64, 64, 9, 9), randn(64)
    y = F.conv2d(x, weight)
    residual = randn(*y.shape, seed=1)
    out, winner = convolve(tile, x, weight, bias, residual, True, pool=True, release=release, order=order)
    windows = F.relu(y + bias[:, None, None] + residual).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert (windows == 0).all(4).any()
    torch.testing.assert_close(out, windows.amax(4), **EXACT)
    assert winner is not None and (winner == windows.argmax(4)).all()


def test_nan_passes_the_relu_and_wins_its_window() -> None:
    x, weight = randn(1, 64, 16, 24), randn(64, 64, 9, 9)
    residual = torch.zeros(1, 64, 8, 16, dtype=torch.float64).to(memory_format=torch.channels_last)
    residual[0, 5, 3, 4] = float("nan")
    out, _ = convolve(Tile(8, 32, 2, 9, 4), x, weight, None, residual, True)
    assert out.isnan().sum() == 1 and out[0, 5, 3, 4].isnan()
    out, winner = convolve(Tile(8, 32, 2, 9, 4), x, weight, None, residual, True, pool=True)
    assert out.isnan().sum() == 1 and out[0, 5, 1, 2].isnan()
    assert winner is not None and winner[0, 5, 1, 2] == 2


def test_nan_in_a_picture_reaches_what_the_filter_touches() -> None:
    """As in PyTorch: no other image, and no neighbour in memory."""
    x, weight = randn(9, 64, 12, 16), randn(64, 64, 9, 9)
    x[3, 7, 2, 1] = float("nan")
    out, _ = convolve(Tile(8, 32, 2, 9, 4), x, weight)
    torch.testing.assert_close(out, F.conv2d(x, weight), equal_nan=True, **EXACT)
    assert out.isnan().any()


@in_all_ways
@pytest.mark.parametrize(
    ("images", "height", "width", "padding", "splits", "tile"),
    [
        pytest.param(19, 11, 16, 0, 2, WeightTile(8, 2, 5), id="plain"),
        pytest.param(19, 10, 28, 0, 3, WeightTile(20, 2, 5), id="more-columns"),
        pytest.param(19, 9, 24, 0, 5, WeightTile(16, 3, 2), id="three-stages"),
        pytest.param(5, 9, 12, 2, 4, WeightTile(8, 4, 5), id="padded"),
    ],
)
def test_weight_gradient(
    images: int, height: int, width: int, padding: int, splits: int, tile: WeightTile, release: str, order: str
) -> None:
    x, weight = randn(images, 64, height, width), randn(64, 64, 9, 9).requires_grad_()
    y = F.conv2d(x, weight, padding=padding)
    g = randn(*y.shape, seed=1)
    (truth,) = torch.autograd.grad(y, weight, g)
    torch.testing.assert_close(
        weight_gradient(tile, g, x, splits, padding, release=release, order=order), truth, **EXACT
    )


# What would be wrong on a GPU, by what is changed in the source.
FAULTS = {
    "a tap's memory is filled again too early": ("barrier()  # all warps are done with the tap", "pass  # not"),
    "a step's memory is filled again too early": ("barrier()  # all warps are done with the step", "pass  # not"),
    "too few products are waited for": ("num_outstanding=2, deps", "num_outstanding=4, deps"),
    "too few products of a step are waited for": ("num_outstanding=BOX + 1, deps", "num_outstanding=99, deps"),
    "weights come one tap too early": ("s + SLOTS - 1, (tap > 0) & (tap + SLOTS - 1", "s + SLOTS, (tap + SLOTS"),
    "x comes one turn too early": ("later = turn + STAGES - 1", "later = turn + STAGES"),
    "a step comes too early": ("later = step + STAGES - 1", "later = step + STAGES"),
    "x is not waited for": ("hopper.mbarrier.wait(xbar.index(turn % STAGES), (turn // STAGES) & 1)", "pass"),
    "weights are not waited for": ("hopper.mbarrier.wait(wbar.index(slot), phase)", "pass"),
    "a step is not waited for": ("hopper.mbarrier.wait(bars.index(stage), (step // STAGES) & 1)", "pass"),
    "the wrong phase of x": ("(turn // STAGES) & 1", "(turn // STAGES + 1) & 1"),
    "the wrong phase of the weights": ("((turn * SIZE + tap) // SLOTS) & 1", "(turn * SIZE + tap) & 1"),
    "too few bytes are expected": ("expect(bar, BOXES * BOX_BYTES", "expect(bar, BOX_BYTES"),
    "too few bytes of a step are expected": ("(X_BOXES + G_BOXES) * BOX_BYTES", "X_BOXES * BOX_BYTES"),
    "the last products are not waited for": ("outstanding=0, deps=(acc0, acc1)", "outstanding=1, deps=(acc0, acc1)"),
    "barriers are not fenced": ("    hopper.fence_async_shared()\n", ""),
    "not all warps know the barriers": ("fence_async_shared()\n    barrier()\n", "fence_async_shared()\n"),
    "shifted by half an atom": ("ATOMS: gl.constexpr = MINOR // 8", "ATOMS: gl.constexpr = MINOR // 16"),
    "off by one column": ("s * ATOMS, N0 // 8", "(s + 1) % SIZE * ATOMS, N0 // 8"),
    "off by one tap": ("j * BOX + T, BOX, [BOX", "j * BOX + T - 1, BOX, [BOX"),
    "another filter row": ("[row + dy - PADDING", "[row + dy + 1 - PADDING"),
    "a mask is dropped": ("there = (u < images)", "there = (u < images + 8)"),
    "another image": ("u = image + p % MINOR\n", "u = image + (p + 1) % MINOR\n"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault: str) -> None:
    """In one of the two orders, as an error or as wrong numbers."""
    old, new = FAULTS[fault]
    changed = [source for source in SOURCES if old in (ROOT / source).read_text()]
    assert changed
    for source in changed:
        assert any(wrong("wgrad" in source, order, lambda text: text.replace(old, new)) for order in ORDERS)


@pytest.mark.parametrize("of_weight", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_nothing_is_noticed_without_a_fault(of_weight: bool, order: str) -> None:
    assert not wrong(of_weight, order, lambda text: text)


def wrong(of_weight: bool, order: str, edit: Callable[[str], str]) -> bool:
    """Return whether the emulator finds an edited source wrong."""
    weight = randn(64, 64, 9, 9).requires_grad_()
    try:
        if of_weight:
            x, g = randn(16, 64, 9, 40), randn(16, 64, 1, 32)
            (truth,) = torch.autograd.grad(F.conv2d(x, weight), weight, g)
            found = weight_gradient(WeightTile(8, 2, 5), g, x, 1, order=order, edit=edit)
        else:
            x = randn(7, 64, 9, 32)
            truth = F.conv2d(x, weight)
            found, _ = convolve(Tile(8, 32, 2, 4, 4), x, weight.detach(), order=order, edit=edit)
    except EmulationError:
        return True
    return not torch.allclose(found, truth)


# The operators --------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the emulator run, in float64, what the operators would launch on Hopper, and return the kernels' names."""
    names: list[str] = []

    def emulated(build: Callable[..., Launch]) -> Callable[..., Launch]:
        def run(*arguments: Any) -> Launch:
            with Emulator(order="early") as emulator:
                launch = build(*arguments)
                emulator.run(launch)
            names.append(launch.kernel.__name__)
            return replace(launch, grid=(0,))  # nothing is left to do

        return run

    for name in ("convolution", "weight_gradient"):
        monkeypatch.setattr(hopper, name, emulated(getattr(hopper, name)))
    monkeypatch.setattr(tiles, "DTYPES", (torch.float64,))
    return names


FORWARD, WEIGHT = "_glyph_conv_hopper_fwd_kernel", "_glyph_conv_hopper_wgrad_kernel"


@pytest.mark.parametrize(
    ("side", "pool"), [(32, True), *(pytest.param(side, False, marks=pytest.mark.slow) for side in (48, 40, 32))]
)
def test_layers_of_hanglyph(launched: list[str], buffers: GuardedBuffers, side: int, pool: bool) -> None:
    """Every tile at its size: output and every gradient by the operators of the product."""
    inputs = [randn(1, 64, side, side), randn(64, 64, 9, 9) / 72, randn(64)]
    if side == 32:
        inputs.append(randn(1, 64, 24, 24, seed=1))
    inputs = [buffers.place(tensor).requires_grad_() for tensor in inputs]
    arguments = (*inputs[:3], inputs[3] if side == 32 else None, True, pool, 0)
    out, truth = op.run(*arguments, on_hopper=True), glyph_conv_reference(*arguments)
    cotangent = randn(*truth.shape, seed=2)
    assert launched == [FORWARD]
    found = gradients(out, inputs, [cotangent])
    assert sorted(launched) == [FORWARD, FORWARD, WEIGHT]
    for actual, expected in zip([out, *found], [truth, *gradients(truth, inputs, [cotangent])], strict=True):
        assert relative_rms(actual, expected) < FP32_TOLERANCE  # partial sums of the weight gradient are float32


def test_tensors_that_begin_anywhere(launched: list[str]) -> None:
    """TMA wants multiples of 16 bytes; others are copied."""
    x = torch.zeros(64 * 32 * 32 + 1, dtype=torch.float64)[1:].view(1, 32, 32, 64).permute(0, 3, 1, 2)
    x.copy_(randn(1, 64, 32, 32))
    assert x.data_ptr() % 16
    arguments = (randn(64, 64, 9, 9), randn(64), None, False, False, 0)
    torch.testing.assert_close(op.run(x, *arguments, on_hopper=True), glyph_conv_reference(x, *arguments), **EXACT)
    assert launched == [FORWARD]


@pytest.mark.parametrize(
    ("shape", "filters", "options"),
    [
        ((1, 64, 12, 12), (64, 64, 3, 3), {}),
        ((1, 16, 32, 32), (16, 16, 9, 9), {}),
        ((1, 64, 20, 20), (64, 64, 9, 9), {}),
        ((1, 64, 12, 12), (64, 64, 9, 9), {"padding": 1}),
        ((0, 64, 32, 32), (64, 64, 9, 9), {}),
    ],
)
def test_other_sizes_run_on_triton(
    launched: list[str], shape: tuple[int, ...], filters: tuple[int, ...], options: dict[str, Any]
) -> None:
    inputs = [randn(*shape).requires_grad_(), (randn(*filters) / 72).requires_grad_(), randn(filters[0])]
    arguments = (*inputs, None, False, False, options.get("padding", 0))
    out, truth = op.run(*arguments, on_hopper=True), glyph_conv_reference(*arguments)
    cotangent = randn(*truth.shape, seed=2)
    results = zip(
        [out, *gradients(out, inputs[:2], [cotangent])],
        [truth, *gradients(truth, inputs[:2], [cotangent])],
        strict=True,
    )
    assert not launched and all(relative_rms(actual, expected) < 1e-12 for actual, expected in results)


def test_opcheck(launched: list[str]) -> None:
    """The operators are Triton's; told to use Hopper's kernels, schemas and fake tensors still hold."""
    x, weight, bias = randn(1, 64, 32, 32), randn(64, 64, 9, 9), randn(64)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(op._glyph_conv.custom, (x, weight, bias, None, True, True, 0, True), test_utils=tests)
    g = randn(1, 64, 24, 24)
    torch.library.opcheck(op._data_gradient.custom, (g, weight, 0, True), test_utils=tests)
    torch.library.opcheck(op._weight_gradient.custom, (g, x, weight, 0, True), test_utils=tests)
    assert {FORWARD, WEIGHT} == set(launched)


def test_compiles_without_a_graph_break(launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile(fullgraph=True)` sees through the choice as well."""
    monkeypatch.setattr(api, "on_no_gpu", lambda x: "")
    monkeypatch.setattr(api, "hopper_obstacle", lambda x: "")
    monkeypatch.setattr(record, "hopper_obstacle", lambda x: "")
    inputs = [randn(1, 64, 32, 32).requires_grad_(), (randn(64, 64, 9, 9) / 72).requires_grad_(), randn(64)]
    cotangent = randn(1, 64, 12, 12, seed=2)

    def function(*tensors: Tensor) -> Tensor:
        return glyph_conv(*tensors, relu=True, pool=True)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = gradients(compiled(*inputs), inputs[:2], [cotangent])
    assert sorted(launched) == [FORWARD, FORWARD, WEIGHT]
    assert all(
        torch.equal(a, b) for a, b in zip(found, gradients(function(*inputs), inputs[:2], [cotangent]), strict=True)
    )


# The choice -----------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu(on_gpu: Callable[[Target], None]) -> Iterator[Callable[[Target], None]]:
    """With all tensors fake."""
    with FakeTensorMode():
        yield on_gpu


def arguments(side: int = 48, channels: int = 64, dtype: torch.dtype = torch.bfloat16, size: int = 9) -> list[Tensor]:
    x = torch.empty(2, channels, side, side, dtype=dtype, device="cuda")
    return [x, x.new_empty(channels, channels, size, size), x.new_empty(channels)]


def test_auto_takes_them_where_they_cover_the_sizes(on_gpu: Callable[[Target], None]) -> None:
    for side in (48, 40, 32):
        for dtype in (torch.float16, torch.bfloat16):
            assert choice("glyph_conv", *arguments(side, dtype=dtype)) == Choice("hopper", "")
            assert choice("glyph_conv", *arguments(side, dtype=dtype), backend="triton") == Choice("triton", "")
    assert choice("glyph_conv", *arguments(32), pool=True).implementation == "hopper"
    others = [(arguments(48), {"pool": True}), (arguments(48), {"padding": 1}), (arguments(44), {})]
    others += [
        (arguments(**{name: value}), {}) for name, value in {"channels": 32, "size": 3, "dtype": torch.float32}.items()
    ]
    for tensors, options in others:
        chosen = choice("glyph_conv", *tensors, **options)
        assert chosen.implementation == "triton"
        assert chosen.reason.startswith("hopper: the kernels take float16 and bfloat16, 9x9 filters, 64 channels")
        # By name, Triton's kernels do what is left, so that a model can insist on it.
        assert choice("glyph_conv", *tensors, **options, backend="hopper") == Choice("hopper", "")


def test_until_they_have_been_tried_they_are_taken_by_name_alone(
    on_gpu: Callable[[Target], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "read", lambda kind: None)
    chosen = choice("glyph_conv", *arguments())
    assert chosen == Choice("triton", f"hopper: {record.UNTRIED}") and record.COMMAND in chosen.reason
    assert choice("glyph_conv", *arguments(), backend="hopper") == Choice("hopper", "")


def test_the_first_convolution_is_chosen_with_the_stem(on_gpu: Callable[[Target], None]) -> None:
    _, weight, bias = arguments()
    rows, bitmaps = (
        torch.empty(2, dtype=torch.int64, device="cuda"),
        torch.empty(9, 288, dtype=torch.uint8, device="cuda"),
    )
    stem = (weight.new_empty(64, 3, 3, 3), bias, weight.new_empty(2, 48, 48))
    assert choice("glyph_stem_conv", rows, bitmaps, *stem, weight, bias) == Choice("hopper", "")
    wide = [tensor.float() for tensor in (*stem, weight, bias)]
    assert choice("glyph_stem_conv", rows, bitmaps, *wide).implementation == "triton"
    torch.set_autocast_enabled("cuda", True)  # the context manager would ask for a GPU
    try:
        assert choice("glyph_stem_conv", rows, bitmaps, *wide).implementation == "hopper"
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("target", [Target("cuda", 80), Target("cuda", 100), Target("hip", "gfx942")])
def test_other_gpus(on_gpu: Callable[[Target], None], target: Target) -> None:
    on_gpu(target)
    chosen = choice("glyph_conv", *arguments())
    assert chosen.implementation == "triton"
    assert f"need a GPU of compute capability 9.0, not {target.backend} {target.arch}; move" in chosen.reason
    with pytest.raises(ValueError, match=r"^glyph_conv: [^\n]+ compute capability 9\.0[^\n]+ or use backend='auto'$"):
        choice("glyph_conv", *arguments(), backend="hopper")


@pytest.mark.parametrize(
    ("release", "taken"), [("3.6.0", True), ("3.7.1", True), ("3.8.0", False), ("3.9.0", True), ("4.0.0", False)]
)
def test_other_releases_of_triton(
    on_gpu: Callable[[Target], None], monkeypatch: pytest.MonkeyPatch, release: str, taken: bool
) -> None:
    """Where Gluon is another, Triton's kernels run, with one warning."""
    monkeypatch.setattr(gpus.triton, "__version__", release)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = [choice("glyph_conv", *arguments()) for _ in range(2)]
        assert {c.implementation for c in chosen} == {"hopper" if taken else "triton"}
        if not taken:
            wanted = f"need Gluon as of Triton 3.6, 3.7, 3.9; install one of these (found {release}), or use"
            with pytest.raises(ValueError, match=re.escape(wanted)):
                choice("glyph_conv", *arguments(), backend="hopper")
    assert len(caught) == (0 if taken else 1)


def test_on_a_cpu_the_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^glyph_conv: [^\n]+ need a GPU of compute capability 9.0, not cpu; move"):
        glyph_conv(
            *(tensor.float() for tensor in (randn(2, 64, 16, 16), randn(64, 64, 9, 9), randn(64))), backend="hopper"
        )


def test_gluon_is_not_imported_for_nothing() -> None:
    program = (
        "import sys, torch, glyphcrm_kernels as k\n"
        "k.glyph_conv(torch.randn(2, 4, 9, 9), torch.randn(4, 4, 9, 9), torch.randn(4))\n"
        "assert not [name for name in sys.modules if 'triton.experimental' in name]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
