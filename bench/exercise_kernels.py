"""Runs every op that has Triton kernels forward and backward at small sizes, in each dtype, beside its reference.

    python -m bench.exercise_kernels

Made for compute-sanitizer, under which everything is slow. On a Hopper GPU its own kernels run as well.
Fails if a kernel of Triton's own language was not launched, so that a new one is not forgotten. With
TRITON_INTERPRET=1 it runs without a GPU; then without bfloat16, whose products the interpreter computes wrongly.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from glyphcrm_kernels._shared.launch import Launch, intercepted
from glyphcrm_kernels._shared.optional_triton import INTERPRETED
from glyphcrm_kernels.registry import OPS

from bench.cases import DROPOUT, SMOKE, Case, Draw, all_cases, step
from bench.peers import Inputs

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = ((16, 32),) if INTERPRETED else ((16, 32), (16, 128), (64, 128))  # all tiles
SIZES = replace(SMOKE, images=1) if INTERPRETED else replace(SMOKE, images=3)
TOLERANCE = 0.1  # relative RMS: the kernel tests look closely, here a wrong launch must show


def kernel_names() -> set[str]:
    """Return the names of all kernels of the package."""
    return set().union(*(op.kernel_names for op in OPS.values()))


def runs_on_hopper(case: Case, inputs: Inputs, p: float) -> bool:
    """Return whether the op has kernels for the GPU that this is, a Hopper."""
    try:
        return OPS[case.op].choice(**case.arguments(inputs, p), backend="hopper").implementation == "hopper"
    except ValueError:
        return False


def exercise(case: Case, dtype: torch.dtype, p: float) -> str:
    """Run a case on the kernels and on the reference, and return what is wrong, or an empty string."""
    inputs = case.differentiable(case.draw(Draw(dtype, DEVICE)), True)
    outputs, _ = step(case.ways["reference"], case, inputs, p, None)
    cotangents = tuple(torch.randn_like(t) for t in outputs)
    expected = sum(step(case.ways["reference"], case, inputs, p, cotangents), ())
    for name in ("triton", "hopper") if runs_on_hopper(case, inputs, p) else ("triton",):
        found = sum(step(case.ways[name], case, inputs, p, cotangents), ())
        for i, (a, e) in enumerate(zip(found, expected, strict=True)):
            a, e = a.detach().float(), e.detach().float()
            if not bool(a.isfinite().all()):
                return f"{name}: result {i} holds values that are not finite"
            # The masks of two implementations differ, so with dropout there is nothing to compare with.
            if not p and (error := float((a - e).norm() / e.norm())) > TOLERANCE:
                return f"{name}: result {i} is off by {error:.2g} (relative RMS)"
    return ""


def main() -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        sys.exit("error: there is no GPU; set TRITON_INTERPRET=1 to run the kernels in Triton's interpreter")
    torch.manual_seed(0)
    launched: set[str] = set()

    def record(launch: Launch) -> None:
        launched.add(getattr(launch.kernel, "__name__", None) or launch.kernel.fn.__name__)
        launch.start()

    every = [case for c1, c2 in CHANNELS for case in all_cases(replace(SIZES, c1=c1, c2=c2), DEVICE)]
    with intercepted(record):
        for dtype in DTYPES:
            for case in (case for case in every if "triton" in OPS[case.op].implementations):
                for p in (0.0, DROPOUT) if case.drops else (0.0,):
                    print(f"{case.op} {case.size}, {dtype}, p = {p}", flush=True)
                    if wrong := exercise(case, dtype, p):
                        sys.exit(f"error: {wrong}")
    if missed := kernel_names() - launched:
        sys.exit(f"error: not launched: {', '.join(sorted(missed))}")
    print(f"{len(launched)} kernels, {len(DTYPES)} dtypes: every result is finite and as the reference's")


if __name__ == "__main__":
    main()
