"""Calls each op on a Hopper that is not there, and holds what is started directly against what Triton starts itself.

    python -m tests.kernels.direct_launches

Run as a program, as Triton must not be interpreting; prints the number of launches.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from glyphcrm_kernels._shared import launch
from glyphcrm_kernels.registry import OPS
from torch import Tensor
from triton.runtime.jit import JITFunction

from bench.cases import DROPOUT, HOST, Case, Draw, all_cases
from bench.host_time import no_gpu, willing


def kinds(started: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Return what a launcher was given, but for where the tensors lie and the notes for profilers, the seventh."""
    given = [(*values[:6], *values[7:]) for values in started]
    return [[(v.dtype, v.shape) if isinstance(v, Tensor) else v for v in values] for values in given]


def train(case: Case) -> None:
    torch.manual_seed(0)
    inputs = case.differentiable(case.draw(Draw(torch.float32)), True)
    outputs = case.run("triton", inputs, DROPOUT)
    torch.autograd.grad(outputs, case.leaves(inputs), [torch.zeros_like(t) for t in outputs])


def main() -> None:
    assert launch.DIRECT
    launches = 0
    started: list[tuple[Any, ...]] = []
    with no_gpu(lambda *given: started.append(given)), willing("triton"):
        for case in (case for case in all_cases(HOST) if "triton" in OPS[case.op].implementations):
            started.clear()
            train(case)
            by_triton = kinds(started)
            started.clear()
            with mock.patch.object(JITFunction, "run", side_effect=AssertionError("Triton was asked")):
                train(case)
            assert kinds(started) == by_triton, (case.op, case.size)
            launches += len(started)

        # What Triton compiles for addresses that are no multiples of 16 bytes is another kernel.
        def norm(offset: int) -> Any:
            x = torch.zeros(3 * 16 + offset)[offset:].view(3, 16)
            started.clear()
            OPS["add_norm"].function(x, torch.zeros(3, 16), torch.ones(16), torch.zeros(16), backend="triton")
            return started[0][4:6]

        with mock.patch.object(JITFunction, "run", autospec=True, side_effect=JITFunction.run) as asked:
            norm(0)
            norm(1)
            norm(0)
            norm(1)
        assert asked.call_count == 2, asked.call_count
    print(launches)


if __name__ == "__main__":
    main()
