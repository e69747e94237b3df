"""The stem by look-up against float64."""

from __future__ import annotations

import pytest
import torch
from glyphcrm_kernels import glyph_stem
from glyphcrm_kernels._shared import cpu_library
from glyphcrm_kernels.stem.cpu import glyph_stem_cpu
from glyphcrm_kernels.stem.reference import glyph_stem_reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.checks import GuardedBuffers, gradients, relative_rms

TOLERANCE = 1e-6  # relative RMS
HERE = [n for n in cpu_library.LANES if cpu_library.lanes(n) == n]

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")


def problem(seed: int, images: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return rows, bitmaps, weight, bias, position map.

    Taps are multiples of 1/64 and position channels of 1/16, so that equal sums are equal in any precision: ties
    in a pooling window, of which pictures have many, are decided alike.
    """
    generator = torch.Generator().manual_seed(seed)
    bitmaps = torch.randint(0, 256, (11, 288), generator=generator, dtype=torch.uint8)
    bitmaps[0], bitmaps[1] = 0, 255
    weight, bias = (
        torch.randint(-64, 65, shape, generator=generator) / 64 for shape in ((channels, 3, 3, 3), (channels,))
    )
    positions = torch.randint(-3, 4, (2, 48, 48), generator=generator) / 16
    return torch.randint(0, 11, (images,), generator=generator), bitmaps, weight, bias, positions


@pytest.mark.parametrize("lanes", HERE)
@given(seed=st.integers(0, 2**31), images=st.integers(1, 6), groups=st.integers(1, 3), narrow=st.booleans())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_forward_and_gradients_are_true(
    buffers: GuardedBuffers,
    monkeypatch: pytest.MonkeyPatch,
    lanes: int,
    seed: int,
    images: int,
    groups: int,
    narrow: bool,
) -> None:
    monkeypatch.setattr(cpu_library, "lanes", lambda *channels: lanes)
    rows, bitmaps, *trained, positions = problem(seed, images, groups * lanes)
    cotangents = [torch.randn(images, groups * lanes, side, side) for side in (48, 24)]
    exact = [t.double().requires_grad_() for t in trained]
    truth = glyph_stem_reference(rows, bitmaps, *exact, positions.double())
    placed = [buffers.place(t.requires_grad_()) for t in trained]
    out = glyph_stem(rows.int() if narrow else rows, bitmaps, *placed, positions)
    assert "stem_cpu" in out[0].grad_fn.name()  # type: ignore[union-attr]
    found = [*out, *gradients(out, placed, cotangents)]
    expected = [*truth, *gradients(truth, exact, [t.double() for t in cotangents])]
    for name, ours, theirs in zip(("activation", "pooled", "dweight", "dbias"), found, expected, strict=True):
        error = relative_rms(ours, theirs)
        assert error <= TOLERANCE, f"{name}: relative RMS error {error:.1e}"
    buffers.assert_guards_unchanged()


def test_the_number_of_threads_changes_no_bit() -> None:
    rows, bitmaps, weight, bias, positions = problem(0, 9, 16)
    weight.requires_grad_()
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            out = glyph_stem(rows, bitmaps, weight, bias, positions)
            results.append([*out, *gradients(out, [weight], [torch.ones_like(t) for t in out])])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_operator_keeps_the_rules_of_pytorch() -> None:
    rows, bitmaps, *_ = problem(1, 2, 16)
    arguments = (rows, bitmaps, torch.randn(9, 16, requires_grad=True), torch.randn(48, 48, 16, requires_grad=True))
    torch.library.opcheck(glyph_stem_cpu.custom, arguments, test_utils=("test_schema", "test_faketensor"))


def test_nan_is_not_swallowed() -> None:
    rows, bitmaps, weight, bias, positions = problem(2, 2, 16)
    weight[3] = torch.nan
    activation, pooled = glyph_stem(rows, bitmaps, weight, bias, positions)
    assert activation[:, 3].isnan().all() and pooled[:, 3].isnan().all() and activation[:, 4].isfinite().all()
