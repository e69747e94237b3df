"""Runs every kernel forward and backward at small sizes, once for each dtype, and looks at the results.

    python -m bench.exercise_kernels

Made for compute-sanitizer, under which everything is slow. Fails if a kernel of the package was not
launched, so that a new one is not forgotten. With TRITON_INTERPRET=1 it runs without a GPU; then without
bfloat16, whose products the interpreter computes wrongly.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from glyphcrm_kernels import add_norm, glyph_conv, glyph_stem
from glyphcrm_kernels._triton import INTERPRETED
from glyphcrm_kernels.launch import Launch
from torch import Tensor

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = (16,) if INTERPRETED else (16, 64)  # "tiny" and "base", which have tiles of their own
IMAGES = 1 if INTERPRETED else 3
TOLERANCE = 0.1  # relative RMS: the kernel tests look closely, here a wrong launch must show
IMAGE = 48


def kernel_names() -> set[str]:
    """Return the names of all kernels of the package."""
    modules = [import_module(f"glyphcrm_kernels.{name}") for name in ("add_norm", "glyph_conv", "glyph_stem")]
    return {name for module in modules for name in vars(module) if name.endswith("_kernel")}


def randn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype).requires_grad_()


def add_norms(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    x, residual, skip = (randn(n, 768, dtype=dtype) for n in (50, 50, 7))
    weight, bias = (randn(768, dtype=dtype) for _ in range(2))
    index = torch.randint(7, (50,), device=DEVICE)
    # The masks of the two backends differ, so with dropout there is nothing to compare with.
    for rows, training in ((None, False), (skip, False), (skip, True)):
        options = {"skip": rows, "index": index if rows is not None else None, "p": 0.1, "training": training}
        yield add_norm, (x, residual, weight, bias), options, not training


def glyph_stems(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    bitmaps = torch.randint(256, (5, IMAGE * IMAGE // 8), dtype=torch.uint8, device=DEVICE)
    rows = torch.arange(IMAGES, device=DEVICE)
    positions = torch.randn(2, IMAGE, IMAGE, device=DEVICE)
    for channels in CHANNELS:
        weight, bias = randn(channels, 3, 3, 3, dtype=dtype, scale=0.3), randn(channels, dtype=dtype)
        yield glyph_stem, (rows, bitmaps, weight, bias, positions), {}, True


def glyph_convs(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for c in CHANNELS:
        side, out = (16, 8) if INTERPRETED else (32, 24)
        x, weight = randn(IMAGES, c, side, side, dtype=dtype), randn(c, c, 9, 9, dtype=dtype, scale=0.1 / c**0.5)
        bias, residual = randn(c, dtype=dtype), randn(IMAGES, c, out, out, dtype=dtype)
        yield glyph_conv, (x, weight, bias), {"residual": residual, "relu": True, "pool": True}, True
        x, weight = randn(IMAGES, c, 12, 12, dtype=dtype), randn(2 * c, c, 3, 3, dtype=dtype, scale=0.3 / c**0.5)
        yield glyph_conv, (x, weight, randn(2 * c, dtype=dtype)), {"relu": True, "padding": 1}, True


def run(
    op: Any, arguments: tuple[Tensor, ...], options: dict[str, Any], cotangents: list[Tensor] | None, backend: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and gradients, and cotangents of the outputs, fresh ones if none are given."""
    outputs = op(*arguments, **options, backend=backend)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    cotangents = cotangents or [torch.randn_like(t) for t in outputs]
    leaves = [t for t in (*arguments, *options.values()) if isinstance(t, Tensor) and t.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)], cotangents


def main() -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        sys.exit("error: there is no GPU; set TRITON_INTERPRET=1 to run the kernels in Triton's interpreter")
    torch.manual_seed(0)
    launched: set[str] = set()
    start = Launch.run

    def record(launch: Launch) -> None:
        launched.add(getattr(launch.kernel, "__name__", None) or launch.kernel.fn.__name__)
        start(launch)

    with mock.patch.object(Launch, "run", record):
        for dtype in DTYPES:
            for op, arguments, options, comparable in (*add_norms(dtype), *glyph_stems(dtype), *glyph_convs(dtype)):
                found, cotangents = run(op, arguments, options, None, "triton")
                expected, _ = run(op, arguments, options, cotangents, "reference")
                shapes = [tuple(t.shape) for t in arguments]
                print(f"{op.__name__} {dtype} {shapes}", flush=True)
                for i, (a, e) in enumerate(zip(found, expected, strict=True)):
                    a, e = a.detach().float(), e.detach().float()
                    if not bool(a.isfinite().all()):
                        sys.exit(f"error: result {i} holds values that are not finite")
                    if comparable and (error := float((a - e).norm() / e.norm())) > TOLERANCE:
                        sys.exit(f"error: result {i} is off by {error:.2g} (relative RMS)")
    if missed := kernel_names() - launched:
        sys.exit(f"error: not launched: {', '.join(sorted(missed))}")
    print(f"{len(launched)} kernels, {len(DTYPES)} dtypes: every result is finite and as the reference's")


if __name__ == "__main__":
    main()
