"""What exporters, transforms and tracers are given of the ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from glyphcrm_kernels import add_norm, choice
from glyphcrm_kernels._shared import cpu_library
from glyphcrm_kernels.registry import OPS
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from tests.kernels.checks import relative_rms
from tests.kernels.examples import EXAMPLES

# Which tensors grow with the first dimension; the others are weights.
GROWS = {
    "add_norm": ("x", "residual", "index"),
    "glyph_stem": ("rows",),
    "glyph_conv": ("x", "residual"),
    "glyph_stem_conv": ("rows",),
    "dropout_attention": ("query", "key", "value"),
    "biased_linear": ("x",),
}


class Call(nn.Module):
    """An op as a model calls it, of the tensors that grow."""

    def __init__(self, op: str, backend: str) -> None:
        super().__init__()
        self.op, self.backend = op, backend
        self.others: dict[str, Any] = {n: v for n, v in EXAMPLES[op]("cpu").items() if n not in GROWS[op]}
        if "p" in self.others:
            self.others["p"] = 0.0
        for name, value in self.others.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value.detach())

    def forward(self, *growing: Tensor) -> Any:
        others = {n: getattr(self, n) if isinstance(v, Tensor) else v for n, v in self.others.items()}
        arguments = others | dict(zip(GROWS[self.op], growing, strict=True))
        return OPS[self.op].function(**arguments, backend=self.backend)


def repeated(op: str, times: int) -> tuple[Tensor, ...]:
    arguments = EXAMPLES[op]("cpu")
    return tuple(torch.cat([arguments[name].detach()] * times) for name in GROWS[op])


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("op", OPS)
def test_exported_with_a_dynamic_first_dimension(op: str, backend: str) -> None:
    """One program for every size, of PyTorch's operations alone."""
    module = Call(op, backend)
    torch.manual_seed(0)
    example = repeated(op, 2)
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    exported = torch.export.export(module, example, dynamic_shapes=(dynamic,))
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not any("glyphcrm" in name for name in called), called
    assert not any("shift" in name for name in called), called
    for times in (1, 3):
        given = repeated(op, times)
        outputs, truth = (
            [t] if isinstance(t, Tensor) else list(t) for t in (exported.module()(*given), module(*given))
        )
        assert all(relative_rms(a, b) < 1e-5 for a, b in zip(outputs, truth, strict=True))


def test_who_exports_is_told_why_not_the_c_functions() -> None:
    seen: list[str] = []

    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            chosen = choice("add_norm", x, x, x[0], x[0])
            seen.append(f"{chosen.implementation}: {chosen.reason}")
            return x + 1

    torch.export.export(Asks(), (torch.randn(3, 8),))
    assert seen and all(text.startswith("reference: ") and "an exported program runs without" in text for text in seen)


@pytest.mark.parametrize("op", ["add_norm", "glyph_conv"])
def test_vmap_runs_the_reference(op: str) -> None:
    """What maps over tensors does not reach the body of an operator."""
    arguments = EXAMPLES[op]("cpu")
    given = torch.stack([arguments["x"].detach(), 2 * arguments["x"].detach()])

    def call(x: Tensor) -> Tensor:
        return OPS[op].function(**arguments | {"x": x})

    alone = torch.stack([call(x) for x in given])
    assert relative_rms(torch.func.vmap(call)(given), alone) < 1e-5


@pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")
def test_a_trace_and_a_dispatch_mode_see_the_operator() -> None:
    """They would take what a body writes for what was there: memory that nothing was written to."""
    fixed = {n: v.detach() for n, v in EXAMPLES["add_norm"]("cpu").items()}
    call = lambda x: add_norm(**fixed | {"x": x}, backend="cpu")  # noqa: E731
    x, other = fixed["x"], 2 * fixed["x"]
    traced = torch.jit.trace(call, x, check_trace=False)
    assert relative_rms(traced(other), call(other)) < 1e-6
    graph = make_fx(call)(x)
    assert any("add_norm_cpu" in str(node.target) for node in graph.graph.nodes)
    assert relative_rms(graph(other), call(other)) < 1e-6
