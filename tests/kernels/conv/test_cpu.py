"""The convolution in the Fourier domain against float64, for every length of vectors that this processor has."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from glyphcrm_kernels import choice, glyph_conv
from glyphcrm_kernels._shared import cpu_library, memo
from glyphcrm_kernels.conv import cpu as fourier
from glyphcrm_kernels.conv.cpu import fourier_conv
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.checks import GuardedBuffers, gradients, relative_rms

TOLERANCE = 1e-6  # relative RMS; PyTorch's own convolution has 2e-7 to 5e-7
HERE = [n for n in cpu_library.LANES if cpu_library.lanes(n) == n]

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Let the library use vectors of one length alone."""
    monkeypatch.setattr(cpu_library, "lanes", lambda *channels: request.param)
    return request.param


def problem(
    seed: int, images: int, inputs: int, outputs: int, n: int, size: int, with_residual: bool
) -> tuple[list[Tensor], Tensor]:
    """Return x, weight, bias, perhaps residual, and a gradient of the output.

    Before the ReLU the output is half a unit or more away from 0, where rounding would decide.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, weight = randn(images, inputs, n, n), randn(outputs, inputs, size, size) / (inputs * size**2) ** 0.5
    bias = randn(outputs)
    convolved = F.conv2d(x.float().double(), weight.float().double(), bias.float().double())
    wanted = randn(*convolved.shape)
    wanted += 0.5 * wanted.sign()
    given_ = [x, weight, bias, wanted - convolved] if with_residual else [x, weight, bias]
    return [t.float().requires_grad_() for t in given_], randn(*convolved.shape).float()


@pytest.mark.parametrize("lanes", HERE, indirect=True)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(2, 9),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    n=st.sampled_from([9, 10, 12, 15, 16, 20, 24, 30, 32, 40, 48]),
    size=st.sampled_from([5, 7, 9]),
    ending=st.sampled_from(["", "residual", "residual and ReLU"]),
    longest_block=st.sampled_from([1, 3, 64]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_forward_and_gradients_are_true(
    lanes: int,
    buffers: GuardedBuffers,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    images: int,
    inputs: int,
    outputs: int,
    n: int,
    size: int,
    ending: str,
    longest_block: int,
) -> None:
    """Odd sizes, several blocks, vectors of every length; outputs start as NaN between guard bands."""
    monkeypatch.setattr(fourier, "LONGEST_BLOCK", longest_block)
    relu = "ReLU" in ending
    tensors, cotangent = problem(seed, images, inputs * lanes, outputs * lanes, n, size, bool(ending))
    exact = [t.detach().double().requires_grad_() for t in tensors]
    truth = F.conv2d(*exact[:3]) + (exact[3] if ending else 0)
    truth = truth.relu() if relu else truth
    placed = [buffers.place(t) for t in tensors]
    out = fourier_conv(*placed[:3], placed[3] if ending else None, relu)
    found = [out, *gradients(out, placed, [cotangent])]
    expected = [truth, *gradients(truth, exact, [cotangent.double()])]
    for name, ours, theirs in zip(("out", "dx", "dweight", "dbias", "dresidual"), found, expected, strict=False):
        error = relative_rms(ours, theirs)
        assert error <= TOLERANCE, f"{name}: relative RMS error {error:.1e}"
    buffers.assert_guards_unchanged()


def test_the_number_of_threads_changes_no_bit() -> None:
    tensors, cotangent = problem(0, 70, 16, 16, 12, 9, True)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            out = fourier_conv(*tensors, True)
            results.append([out, *gradients(out, tensors, [cotangent])])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual"])
def test_a_single_gradient_is_the_one_of_all_together(wanted: str) -> None:
    tensors, cotangent = problem(1, 3, 16, 16, 12, 5, True)
    number = ("x", "weight", "bias", "residual").index(wanted)
    all_of_them = gradients(fourier_conv(*tensors, True), tensors, [cotangent])
    alone = [t.detach().requires_grad_(i == number) for i, t in enumerate(tensors)]
    (gradient,) = gradients(fourier_conv(*alone, True), alone[number : number + 1], [cotangent])
    assert torch.equal(gradient, all_of_them[number])


def test_nan_is_not_swallowed_by_the_relu() -> None:
    (x, weight, bias), cotangent = problem(2, 2, 16, 16, 12, 9, False)
    with torch.no_grad():
        x[1, 3, 5, 5] = torch.nan
    out = fourier_conv(x, weight, bias, None, True)
    assert out[1].isnan().all() and out[0].isfinite().all()
    dx, dweight = gradients(out, [x, weight], [cotangent])
    assert dx[0].isfinite().all() and dweight.isnan().any()


def test_the_operator_keeps_the_rules_of_pytorch() -> None:
    tensors, _ = problem(3, 2, 16, 16, 12, 5, True)
    torch.library.opcheck(fourier_conv.custom, (*tensors, True), test_utils=("test_schema", "test_faketensor"))
    compiled = torch.compile(lambda *t: glyph_conv(*t[:3], residual=t[3], relu=True), fullgraph=True, backend="eager")
    assert torch.equal(compiled(*tensors), fourier_conv(*tensors, True))


def _takes(**changed: object) -> bool:
    shape = {"images": 2, "channels": 16, "height": 48, "width": 48, "size": 9, "padding": 0, "dtype": torch.float32}
    shape.update(changed)
    images, channels, height, width, size, padding, dtype = shape.values()
    x = torch.zeros(images, channels, height, width, dtype=dtype)  # type: ignore[call-overload]
    weight = torch.zeros(channels, channels, size, size, dtype=dtype)  # type: ignore[call-overload]
    bias = torch.zeros(channels, dtype=dtype)  # type: ignore[call-overload]
    return choice("glyph_conv", x, weight, bias, padding=padding).implementation == "cpu"


def test_what_it_takes() -> None:
    assert _takes()
    refused = [
        {"padding": 1},
        {"width": 40},
        {"height": 44, "width": 44},  # a prime factor of 11
        {"channels": 6},
        {"size": 3},
        {"images": 1},
        {"dtype": torch.float64},
        {"dtype": torch.bfloat16},
    ]
    assert not any(_takes(**changed) for changed in refused)


def test_glyph_conv_chooses_it_and_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With "auto" on a CPU; under torch.func, in forward mode and without the library PyTorch runs in its place."""
    (x, weight, bias), _ = problem(4, 2, 16, 16, 16, 9, False)

    def name(out: Tensor) -> str:
        assert out.grad_fn is not None
        return out.grad_fn.name()

    ours = glyph_conv(x, weight, bias)
    direct = glyph_conv(x, weight, bias, backend="reference")
    assert "fourier" in name(ours) and "fourier" not in name(direct)
    assert relative_rms(ours, direct) < TOLERANCE
    batched = torch.func.vmap(lambda w: glyph_conv(x, w, bias))(torch.stack([weight, 2 * weight]))
    assert relative_rms(batched[0], direct) < TOLERANCE
    tangent = torch.randn_like(x)
    _, derivative = torch.func.jvp(lambda t: glyph_conv(t, weight, bias), (x,), (tangent,))
    assert relative_rms(derivative, F.conv2d(tangent, weight)) < TOLERANCE
    monkeypatch.setattr(cpu_library, "load", lambda: None)
    memo.forget()
    assert "fourier" not in name(glyph_conv(x, weight, bias))


def test_short_memory_is_an_error_and_not_a_crash() -> None:
    """A real limit on a real process: the filters' spectra alone are 39 MB."""
    program = """
        import re, resource, torch
        from glyphcrm_kernels.conv.cpu import fourier_conv
        x, weight, bias = torch.randn(2, 64, 48, 48), torch.randn(64, 64, 9, 9), torch.zeros(64)
        fourier_conv(x, weight, bias, None, False)
        used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20),) * 2)
        try:
            fourier_conv(x, weight, bias, None, False)
        except MemoryError as error:
            print("MemoryError:", error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MemoryError: fourier_forward")


@given(channels=st.sampled_from([16, 32, 64]), n=st.sampled_from([40, 48]))
@settings(max_examples=4, deadline=None)
def test_hanglyphs_own_sizes_are_more_accurate_than_the_direct_sum(channels: int, n: int) -> None:
    assume(cpu_library.lanes(channels))
    tensors, _ = problem(5, 2, channels, channels, n, 9, False)
    truth = F.conv2d(*(t.double() for t in tensors))
    direct = relative_rms(glyph_conv(*tensors, backend="reference"), truth)
    assert relative_rms(fourier_conv(*tensors, None, False), truth) <= max(direct, 2e-7)
