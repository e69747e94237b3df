"""The choice of implementation: names, obstacles, architectures, tensors without values, forward mode."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from glyphcrm_kernels import BACKENDS, Choice, add_norm, choice, glyph_conv, glyph_stem
from glyphcrm_kernels._shared import cpu_library, dispatch, gpus
from glyphcrm_kernels._shared.targets import Target
from glyphcrm_kernels.conv import record
from glyphcrm_kernels.registry import OPS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from tests.kernels.checks import DEVICE
from tests.kernels.examples import EXAMPLES

C_HERE = pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")


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
    on_gpu: Callable[[Target], None], target: Target, supported: bool
) -> None:
    on_gpu(target)
    with FakeTensorMode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = torch.empty(4, 8, device="cuda")
        weight = torch.empty(8, device="cuda")
        arguments = ("add_norm", x, x, weight, weight)
        for _ in range(2):
            assert choice(*arguments).implementation == ("triton" if supported else "reference")
        if supported:
            assert choice(*arguments, backend="triton") == Choice("triton", "")
        else:
            with pytest.raises(ValueError, match=f"do not support {target.backend} {target.arch}"):
                choice(*arguments, backend="triton")
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (0 if supported else 1)
    assert all(f"{target.arch}; the PyTorch reference runs" in message for message in messages)


def test_a_joined_op_asks_both_that_it_joins(on_gpu: Callable[[Target], None]) -> None:
    """On a GPU whose Triton kernels take the stem but not the convolution, "auto" falls back."""
    on_gpu(Target("cuda", 80))
    with FakeTensorMode():
        arguments = {
            name: torch.empty(t.shape, dtype=t.dtype, device="cuda")
            for name, t in EXAMPLES["glyph_stem_conv"]("cpu").items()
        }
        assert choice("glyph_stem_conv", **arguments).implementation == "triton"
        arguments |= {"conv_weight": arguments["conv_weight"].new_empty(10, 4, 9, 9)}
        arguments |= {"conv_bias": arguments["conv_bias"].new_empty(10)}
        chosen = choice("glyph_stem_conv", **arguments)
        assert chosen.implementation == "reference" and "weight has 10 channels" in chosen.reason


@pytest.mark.parametrize(
    ("images", "padding", "found"), [(10**6, 0, "x has"), (900_000, 8, "the output has"), (500_000, 0, "")]
)
def test_pixels_are_counted_in_32_bits(on_gpu: object, images: int, padding: int, found: str) -> None:
    """Those of the output, and in the data gradient those of x: without padding they are more."""
    with FakeTensorMode():
        x = torch.empty(images, 8, 48, 48, device="cuda", dtype=torch.bfloat16)
        chosen = choice("glyph_conv", x, x.new_empty(8, 8, 9, 9), x.new_empty(8), padding=padding)
    assert chosen.implementation == ("reference" if found else "triton")
    assert not found or f"triton: {found}" in chosen.reason


@pytest.mark.parametrize("size", [0, 49, 50])
def test_a_filter_larger_than_the_pictures_is_refused(size: int) -> None:
    arguments = EXAMPLES["glyph_stem_conv"](DEVICE) | {"conv_weight": torch.randn(4, 4, size, size, device=DEVICE)}
    with pytest.raises(ValueError, match=f"^glyph_stem_conv: conv_weight has {size}x{size} filters; they must be 1x1"):
        OPS["glyph_stem_conv"].function(**arguments)


def test_a_number_of_images_that_nobody_knows_decides_nothing(on_gpu: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the graph of a model that finds the distinct characters itself, here on a Hopper GPU."""
    monkeypatch.setattr(record, "drawback", lambda tensor: "")
    with FakeTensorMode(shape_env=ShapeEnv()):
        rows = torch.unique(torch.empty(9, dtype=torch.int64, device="cuda"))
        x = torch.empty(rows.shape[0], 64, 48, 48, device="cuda", dtype=torch.bfloat16)
        weight, bias = x.new_empty(64, 64, 9, 9), x.new_empty(64)
        assert choice("glyph_conv", x, weight, bias).implementation == "hopper"
        stem = (x.new_empty(64, 3, 3, 3), bias, x.new_empty(2, 48, 48))
        bitmaps = torch.empty(20, 288, dtype=torch.uint8, device="cuda")
        assert choice("glyph_stem_conv", rows, bitmaps, *stem, weight, bias).implementation == "hopper"


def test_without_a_c_compiler_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "C compiler" in gpus.obstacle_on(Target("cuda", 90))


def test_without_triton_the_package_imports_and_says_so() -> None:
    """In a process that cannot import Triton."""
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


def test_a_library_that_does_not_load_gets_the_reference_and_one_warning(tmp_path: Path) -> None:
    """As after a move to another machine; in a process that has loaded none."""
    (tmp_path / "_cpu.so").write_bytes(b"no library")
    program = (
        "import sys, torch, glyphcrm_kernels as k\n"
        "from glyphcrm_kernels._shared import cpu_library\n"
        "cpu_library.__file__ = sys.argv[1]\n"
        "x, w = torch.randn(3, 8), torch.ones(8)\n"
        "for _ in range(2):\n"
        "    assert torch.equal(k.add_norm(x, x, w, w), k.add_norm(x, x, w, w, backend='reference'))\n"
        "    k.dropout_attention(*[x[None, None]] * 3, scaling=1.0, p=0.1)\n"
        "try: k.add_norm(x, x, w, w, backend='cpu')\n"
        "except ValueError as error: print(error)\n"
    )
    place = str(tmp_path / "_shared" / "cpu_library.py")
    done = subprocess.run([sys.executable, "-c", program, place], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"do not load \(.*_cpu\.so: .+\); install this package anew, or use backend='auto'", done.stdout)
    warned = re.findall(r"the C functions do not load \(.*_cpu\.so: .+\); PyTorch runs in their place", done.stderr)
    assert len(warned) == 1


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

    def norm(x: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        return add_norm(x, x, w, w, backend=backend)

    _, tangent = torch.func.jvp(norm, (x,), (torch.ones_like(x),))
    _, expected = torch.func.jvp(lambda x: torch.nn.functional.layer_norm(2 * x, (8,), w, w, 1e-12), (x,), (x * 0 + 1,))
    torch.testing.assert_close(tangent, expected)
    for backend in ("triton", "cpu"):
        with pytest.raises(ValueError, match="no rule for forward-mode differentiation"):
            torch.func.jvp(lambda x, b=backend: norm(x, b), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("backend", ["auto", "triton", "cpu"])
def test_torch_func_takes_the_reference(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel has rules for it; "auto" passes them over where it would take them, as on a GPU."""
    op = OPS[name]
    if backend not in ("auto", *op.implementations):
        pytest.skip(f"{name} has no such implementation")
    for known, implementation in dict(op.implementations).items():
        monkeypatch.setitem(op.implementations, known, implementation._replace(drawback=dispatch.nothing))
    torch.manual_seed(0)
    arguments = EXAMPLES[name](DEVICE) | {"backend": backend}
    leaves = {key: t for key, t in arguments.items() if isinstance(t, torch.Tensor) and t.requires_grad}
    detached = {key: t.detach() for key, t in leaves.items()}

    def loss(given: dict[str, torch.Tensor], backend: str = backend) -> torch.Tensor:
        outputs = op.function(**arguments | given | {"backend": backend})
        return sum(y.sin().sum() for y in ([outputs] if isinstance(outputs, torch.Tensor) else outputs))

    transforms = (torch.func.grad(loss), lambda given: torch.func.vjp(loss, given)[1](torch.tensor(1.0, device=DEVICE)))
    if backend != "auto":
        for transform in transforms:
            with pytest.raises(ValueError, match=r"torch\.func; differentiate backward, or use backend='auto'$"):
                transform(detached)
        return
    expected = torch.autograd.grad(loss(leaves, "reference"), list(leaves.values()))
    for transform in transforms:
        found = transform(detached)
        found = found[0] if isinstance(found, tuple) else found
        for key, true in zip(leaves, expected, strict=True):
            torch.testing.assert_close(found[key], true)


@pytest.mark.parametrize("name", OPS)
def test_a_choice_is_what_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`choice` computes nothing, and the function then runs what it named."""
    op, arguments = OPS[name], EXAMPLES[name](DEVICE)
    ran: list[str] = []

    def spy(implementation: str, run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs: (ran.append(implementation), run(*inputs))[1]

    for known, implementation in dict(op.implementations).items():
        monkeypatch.setitem(op.implementations, known, implementation._replace(run=spy(known, implementation.run)))
    chosen = choice(name, **arguments)
    assert not ran and chosen.implementation in op.implementations
    passed = list(op.implementations)[: list(op.implementations).index(chosen.implementation)]
    assert re.findall(rf"(?:^|; )({'|'.join(op.implementations)}): ", chosen.reason) == passed
    op.function(**arguments)
    op.reference(**arguments)
    assert ran == [chosen.implementation, "reference"]


@C_HERE
@pytest.mark.skipif(DEVICE != "cpu", reason="the tensors of the tests are on a GPU")
def test_choices_on_a_cpu() -> None:
    for name, op in OPS.items():
        fastest = "cpu" if "cpu" in op.implementations else "reference"
        assert choice(name, **EXAMPLES[name]("cpu")).implementation == fastest
    x, weight, bias = torch.randn(3, 8, 12, 12), torch.randn(8, 8, 3, 3), torch.randn(8)
    chosen = choice("glyph_conv", x, weight, bias)
    assert chosen.implementation == "reference"
    assert chosen.reason == (
        "hopper: the tensors are on no GPU; triton: the tensors are on no GPU; "
        "cpu: for small filters and for one image the direct sum takes less time"
    )
    # By name it runs all the same, as PyTorch's direct sum, so that a model can insist on it.
    assert choice("glyph_conv", x, weight, bias, backend="cpu") == Choice("cpu", "")
    assert torch.equal(glyph_conv(x, weight, bias, backend="cpu"), glyph_conv(x, weight, bias, backend="reference"))


@pytest.mark.parametrize("name", OPS)
def test_unknown_names_are_refused(name: str) -> None:
    arguments = EXAMPLES[name](DEVICE)
    with pytest.raises(ValueError, match=f"^{name}: backend='fast' is none of {', '.join(BACKENDS)}$"):
        OPS[name].function(**arguments, backend="fast")
    with pytest.raises(ValueError, match=r"^there is no op 'add_nrom'; there are add_norm, glyph_stem"):
        choice("add_nrom", **arguments)


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments in float64, which neither C nor a GPU takes."""
    floating = {n: t for n, t in arguments.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    return arguments | {name: tensor.double() for name, tensor in floating.items()}


@pytest.mark.parametrize("backend", ["hopper", "triton", "cpu"])
@pytest.mark.parametrize("name", OPS)
def test_a_named_one_that_does_not_take_the_arguments_says_what_would_do(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "INTERPRETED", False)
    arguments = doubled(EXAMPLES[name](DEVICE))
    with pytest.raises(ValueError, match=rf"^{name}: [^\n]+, or use backend='auto'$"):
        OPS[name].function(**arguments, backend=backend)
    assert choice(name, **arguments).implementation == "reference"


def test_without_the_c_functions_their_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_library, "load", lambda: None)
    for name in (name for name, op in OPS.items() if "cpu" in op.implementations):
        arguments = EXAMPLES[name]("cpu")
        with pytest.raises(ValueError, match="were not built; install this package where there is a C compiler, or"):
            OPS[name].function(**arguments, backend="cpu")
        assert choice(name, **arguments).implementation == "reference"
