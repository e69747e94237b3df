"""Indices out of range: an error from inside the operators, in eager and in compiled graphs, and nothing read there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from glyphcrm_kernels._shared import cpu_library
from glyphcrm_kernels._shared.checks import CHECK_VARIABLE
from glyphcrm_kernels._shared.optional_triton import INTERPRETED
from glyphcrm_kernels.addnorm.triton import _add_norm, _add_norm_backward, _segment_sum
from glyphcrm_kernels.registry import OPS
from glyphcrm_kernels.stem.triton import _glyph_stem, _glyph_stem_backward

from tests.kernels.checks import DEVICE, GuardedBuffers
from tests.kernels.examples import EXAMPLES

INDICES = {"add_norm": ("index", 3), "glyph_stem": ("rows", 5), "glyph_stem_conv": ("rows", 5)}
BAD = (-1, 10**6, -(10**6), 2**33)

WITH_C = pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")


def broken(op: str, value: int) -> dict[str, Any]:
    """Return the example's arguments with one index that is `value`."""
    arguments = EXAMPLES[op]("cpu")
    name, _ = INDICES[op]
    arguments[name] = arguments[name].clone()
    arguments[name][-1] = value
    return arguments


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("op", INDICES)
def test_an_eager_call_names_the_value_on_a_cpu(op: str, backend: str) -> None:
    if backend == "cpu" and cpu_library.load() is None:
        pytest.skip("installed without a C compiler")
    rows = INDICES[op][1]
    for value in (*BAD, rows):
        with pytest.raises(ValueError, match=rf"{INDICES[op][0]} holds {value}; it must be in \[0, {rows}\)$"):
            OPS[op].function(**broken(op, value), backend=backend)


# In a process of its own: before, such graphs read where nothing is, and the process ended.
COMPILED = """
    import torch
    from glyphcrm_kernels.registry import OPS
    from tests.kernels.test_indices import BAD, INDICES, backends, broken

    for op in INDICES:
        for backend in backends():
            torch.compiler.reset()
            call = lambda given: OPS[op].function(**given, backend=backend)
            compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
            for value in BAD:
                try:
                    compiled(broken(op, value))
                except (ValueError, RuntimeError) as error:
                    assert "must be in [0, " in str(error), error
                    print("refused", flush=True)
                else:
                    print(op, backend, value, flush=True)
"""


def backends() -> list[str]:
    return ["reference"] if cpu_library.load() is None else ["cpu", "reference"]


def test_a_compiled_graph_refuses_on_a_cpu() -> None:
    command = [sys.executable, "-c", textwrap.dedent(COMPILED)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": search_path()})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["refused"] * len(BAD) * len(INDICES) * len(backends())


def search_path() -> str:
    return os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))


@WITH_C
def test_the_backward_refuses_what_has_changed_since() -> None:
    """The C functions look in both passes; an index may be written to between them."""
    arguments = EXAMPLES["add_norm"]("cpu")
    y = OPS["add_norm"].function(**arguments, backend="cpu")
    index = arguments["index"]
    index.data[0] = 10**6
    with pytest.raises(ValueError, match="index holds 1000000"):
        y.sum().backward()


def test_the_kernels_read_nothing_there_and_give_nan(buffers: GuardedBuffers) -> None:
    """That token's row, or that picture, and no other."""
    d, dtype = 24, torch.float32
    x, residual, skip, dy = (buffers.place(torch.randn(n, d, device=DEVICE)) for n in (6, 6, 3, 6))
    weight, bias = (buffers.place(torch.randn(d, device=DEVICE)) for _ in range(2))
    index = buffers.place(torch.tensor([0, 10**6, 2, -1, 1, 3], device=DEVICE))
    y, statistics = _add_norm.body(x, residual, weight, bias, skip, index, None, 0.0, 1e-12)
    outside = torch.tensor([False, True, False, True, False, True], device=DEVICE)
    assert torch.equal(y.isnan().all(1), outside) and y[~outside].isfinite().all()
    dz, _, dparameters = _add_norm_backward.body(dy, x, residual, weight, statistics, skip, index, None, 0.0)
    assert torch.equal(dz.isnan().all(1), outside) and dz[~outside].isfinite().all() and dparameters.isnan().any()
    assert _segment_sum.body(dz, index, 3, dtype).isfinite().all()  # the rows of the tokens that have one

    bitmaps = buffers.place(torch.randint(256, (5, 288), dtype=torch.uint8, device=DEVICE))
    rows = buffers.place(torch.tensor([4, 10**6, -1, 0, 5], device=DEVICE))
    taps, constant = (buffers.place(torch.randn(*shape, 4, device=DEVICE)) for shape in ((9,), (48, 48)))
    activation, pooled = _glyph_stem.body(rows, bitmaps, taps, constant, dtype)
    known = torch.tensor([True, False, False, True, False], device=DEVICE)
    for drawn in (activation, pooled):
        assert torch.equal(drawn.flatten(1).isfinite().all(1), known) and drawn[~known].isnan().all()
    _glyph_stem_backward.body(rows, bitmaps, activation, activation, pooled, torch.float32)


@pytest.mark.skipif(INTERPRETED, reason="on a CPU, values are always looked at")
@pytest.mark.skipif(DEVICE != "cuda", reason="there is no GPU")
def test_values_on_a_gpu_are_looked_at_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {n: t.to(DEVICE) if isinstance(t, torch.Tensor) else t for n, t in broken("add_norm", 10**6).items()}
    assert OPS["add_norm"].function(**arguments, backend="triton")[-1].isnan().all()
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    with pytest.raises(ValueError, match="index holds 1000000"):
        OPS["add_norm"].function(**arguments, backend="triton")
