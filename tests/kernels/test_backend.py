"""The choice of implementation: architectures, warnings, tensors without values, forward-mode differentiation."""

from __future__ import annotations

import warnings

import pytest
import torch
from glyphcrm_kernels import add_norm, backend, glyph_conv, glyph_stem
from glyphcrm_kernels.launch import Target
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.mark.parametrize(
    ("target", "supported"),
    [
        (Target("cuda", 75), False),
        (Target("cuda", 80), True),
        (Target("cuda", 120), True),
        (Target("hip", "gfx906"), False),
        (Target("hip", "gfx942"), True),
    ],
)
def test_an_unsupported_gpu_gets_the_reference_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, target: Target, supported: bool
) -> None:
    monkeypatch.setattr(backend, "_can_build", lambda: True)
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(backend, "target_of", lambda device: target)
    backend._supports.cache_clear()
    with FakeTensorMode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = torch.empty(4, 8, device="cuda")
        for choice in ("auto", "triton", "auto"):
            assert backend.use_triton("add_norm", choice, x=x) is supported
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (0 if supported else 1)
    assert all(f"{target.arch}; the PyTorch reference runs" in message for message in messages)
    backend._supports.cache_clear()


def test_without_a_c_compiler_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "C compiler" in backend.obstacle_on(Target("cuda", 90))


def test_without_triton_the_package_imports_and_says_so() -> None:
    """In a process that cannot import Triton."""
    import subprocess
    import sys

    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, glyphcrm_kernels as k\n"
        "x, w = torch.randn(3, 8), torch.ones(8)\n"
        "assert k.add_norm(x, x, w, w).shape == (3, 8)\n"
        "try: k.add_norm(x, x, w, w, backend='triton')\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Triton is not installed" in done.stdout


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_shapes_follow_without_values(device: str) -> None:
    """On meta and fake tensors, nothing is looked at."""
    with FakeTensorMode() if device == "fake" else torch.device("meta"):
        x, rows = torch.empty(2, 5, 8), torch.empty(3, 8)
        index = torch.zeros(2, 5, dtype=torch.int64)
        assert add_norm(x, x, rows[0], rows[0], skip=rows, index=index).shape == x.shape
        atlas = torch.empty(9, 288, dtype=torch.uint8)
        weight = torch.empty(4, 3, 3, 3)
        positions = torch.empty(2, 48, 48)
        activation, pooled = glyph_stem(index[0], atlas, weight, weight[:, 0, 0, 0], positions)
        assert activation.shape == (5, 4, 48, 48) and pooled.shape == (5, 4, 24, 24)
        y = glyph_conv(activation, torch.empty(4, 4, 9, 9), weight[:, 0, 0, 0], relu=True, pool=True)
        assert y.shape == (5, 4, 20, 20)


def test_forward_mode_takes_the_reference() -> None:
    """The kernels have no rule for tangents; PyTorch would take them for 0."""
    x, w = torch.randn(3, 8), torch.randn(8)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return add_norm(x, x, w, w, backend="triton")

    _, tangent = torch.func.jvp(norm, (x,), (torch.ones_like(x),))
    _, expected = torch.func.jvp(lambda x: torch.nn.functional.layer_norm(2 * x, (8,), w, w, 1e-12), (x,), (x * 0 + 1,))
    torch.testing.assert_close(tangent, expected)
