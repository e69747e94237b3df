"""Tries the kernels for Hopper on the first GPU that this process sees, and records what came out.

    python -m glyphcrm_kernels.conv.trial

Another process does it, which may hang or crash. Every tile of hopper_tiles.py is held against float64, NaN included,
and at the size of a training step against the Triton kernels: twice the same bits, also in a CUDA graph, and faster.
Exit code: 0 if they passed, 1 if not, 2 if there is nothing to try.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm_kernels._shared import buffers
from glyphcrm_kernels._shared.gpus import hopper_obstacle
from glyphcrm_kernels._shared.memo import forget
from glyphcrm_kernels._shared.optional_triton import triton
from glyphcrm_kernels.conv import hopper_tiles, record
from glyphcrm_kernels.conv.reference import glyph_conv_reference
from glyphcrm_kernels.conv.triton import run as run_triton

LAYERS = ((48, False), (40, False), (32, False), (32, True))  # sides, and whether they pool: all tiles there are
IMAGES = (1, 37)  # no full group, and full ones with a rest
STEP_IMAGES = 1701  # distinct characters of a step
LIMIT = 300.0  # seconds; compiling takes most of them
TOLERANCE = 0.5  # times the dtype's epsilon, relative RMS: twice what rounding alone makes
REPEATS = 5
# Should whoever waits for it be killed, a trial that hangs ends by itself.
ALONE = f"import signal; signal.alarm({LIMIT:.0f} + 60); "
TRIAL = (sys.executable, "-c", ALONE + "from glyphcrm_kernels.conv.trial import try_all; try_all()")
Compute = Callable[..., Tensor]
HOPPER: Compute = partial(run_triton, on_hopper=True)


def example(
    side: int, pool: bool, dtype: torch.dtype, images: int, device: str, with_nan: bool
) -> tuple[list[Tensor], Tensor]:
    """Return x, weight, bias, at side 32 a residual, and a gradient of the output, in NHWC order but for the weight.

    Rounding decides nothing: what goes into the ReLU is not near 0, and with a residual the four values of a pooling
    window are a unit apart. NaN, if any, is one number of the gradient and one of x, or with pooling of the residual.
    """
    generator = torch.Generator(device).manual_seed(side + pool)

    def randn(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=device)
        return drawn.to(dtype, memory_format=torch.channels_last)

    inputs = [randn(images, 64, side, side), randn(64, 64, 9, 9) / 72]
    inputs.append(torch.where(torch.rand(64, generator=generator, device=device) < 0.5, 6.0, -6.0))
    x, weight, bias = (tensor.to(torch.promote_types(dtype, torch.float32)) for tensor in inputs)
    convolved = F.conv2d(x, weight, bias)
    if side == 32:
        places = torch.rand(images, 64, 12, 12, 4, generator=generator, device=device).argsort(-1)
        wanted = places.unflatten(-1, (2, 2)).transpose(3, 4).reshape(convolved.shape) - 1.25
        inputs.append((wanted - convolved).to(dtype, memory_format=torch.channels_last))
    cotangent = randn(*(F.max_pool2d(convolved, 2) if pool else convolved).shape)
    if with_nan:
        (inputs[3] if pool else inputs[0])[images // 2, 7, 2, 1] = cotangent[0, 5, 3, 4] = torch.nan
    return inputs, cotangent


def step(compute: Compute, inputs: Sequence[Tensor], cotangent: Tensor, pool: bool) -> list[Tensor]:
    """Return the output of a layer with a ReLU and the gradients of its inputs."""
    x, weight, bias, *residual = inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = compute(x, weight, bias, residual[0] if residual else None, True, pool, 0)
    return [out.detach(), *torch.autograd.grad(out, inputs, cotangent)]


def hold(found: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Raise `AssertionError` unless the results of `step` are the true ones, computed in `dtype`."""
    for name, actual, true in zip(("out", "dx", "dweight", "dbias", "dresidual"), found, truth, strict=False):
        lost = int((actual.isnan() != true.isnan()).sum())
        if lost:
            raise AssertionError(f"{name}: {lost} numbers are NaN that must not be, or the reverse")
        actual, true = (torch.where(t.isnan(), 0, t).double() for t in (actual, true))
        error = float((actual - true).norm() / true.norm())
        allowed = TOLERANCE * max(torch.finfo(dtype).eps, 1e-6)
        if not error <= allowed:
            raise AssertionError(f"{name}: relative RMS error {error:.1e}, allowed {allowed:.1e}")


def try_layer(side: int, pool: bool, dtype: torch.dtype, images: int, device: str = "cuda") -> None:
    """Raise `AssertionError` unless output and gradients of a layer are the reference's in float64."""
    inputs, cotangent = example(side, pool, dtype, images, device, with_nan=images > 1)
    # PyTorch's own convolution: cuDNN may choose an algorithm that spreads NaN.
    with torch.backends.cudnn.flags(enabled=False):
        truth = step(glyph_conv_reference, [t.double() for t in inputs], cotangent.double(), pool)
    hold(step(HOPPER, inputs, cotangent, pool), truth, dtype)


def try_step(side: int, pool: bool, dtype: torch.dtype = torch.bfloat16) -> tuple[float, float]:
    """Try a layer at the size of a training step; return the seconds of Triton's kernels, and of these."""
    inputs, cotangent = example(side, pool, dtype, STEP_IMAGES, "cuda", with_nan=False)
    ways: list[Callable[[], list[Tensor]]] = [
        partial(step, compute, inputs, cotangent, pool) for compute in (run_triton, HOPPER)
    ]
    truth, found = (way() for way in ways)
    hold(found, truth, dtype)
    _hold_equal("the second time", ways[1](), found)
    before, after = (_seconds(way) for way in ways)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ways[1]()
    for tensor in (inputs[0], cotangent):
        tensor.copy_(tensor.flip(0))
    graph.replay()
    _hold_equal("in a CUDA graph", found, ways[1]())
    return before, after


def _hold_equal(when: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    if not all(map(torch.equal, found, expected)):
        raise AssertionError(f"other bits {when}")


def _seconds(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _poisoned(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what makes the same tensors, full of NaN: what is not written must show."""

    def filled(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        out = empty(*shape, like=like, dtype=dtype)
        return out.fill_(float("nan") if out.is_floating_point() else 255)

    return filled


def try_all() -> None:
    """Try everything on a GPU, in the process that may be lost; the last line that is printed is the outcome."""

    torch.cuda.synchronize()  # a GPU that cannot be had is no fault of the kernels
    plain = buffers.empty, buffers.empty_nhwc
    buffers.empty, buffers.empty_nhwc = (_poisoned(empty) for empty in plain)
    for dtype in hopper_tiles.DTYPES:
        for side, pool in LAYERS:
            for images in IMAGES:
                _named(
                    f"{dtype}, {images} images, {side}x{side}{', pooled' * pool}", try_layer, side, pool, dtype, images
                )
    buffers.empty, buffers.empty_nhwc = plain
    steps = [_named(f"{side}x{side}{', pooled' * pool}", try_step, side, pool) for side, pool in LAYERS]
    before, after = map(sum, zip(*steps, strict=True))
    if after >= before:
        raise AssertionError(f"right, but {before / after:.2f} times as fast as the Triton kernels")
    print(f"right, and {before / after:.2f} times as fast as the Triton kernels")


def _named(what: str, check: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a check returns; raise `AssertionError` with its name for what the kernels are to blame for."""
    print(what, flush=True)
    try:
        return check(*arguments)
    except Exception as error:
        if not isinstance(error, AssertionError | triton.errors.TritonError) and _answers():
            raise
        raise AssertionError(f"{what}: {' '.join(str(error).split())}") from None


def _answers() -> bool:
    """Return whether the GPU goes on; it does not after a kernel has read or written where there is nothing."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def attempt(command: Sequence[str], limit: float = LIMIT) -> tuple[str | None, str]:
    """Run a trial; return what its record is to say (None: it has shown nothing), and a line for the user.

    Wrong numbers, code that does not compile, a crash and a hang are failures. Other errors (memory that others use up)
    say nothing of kernels.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
                    process.wait(10)
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip()[:300] for line in reversed(lines) if line.strip()), "nothing was said")
    if code == 0:
        return "", last
    if code is None or code < 0:
        end = f"no end after {limit:.0f} s" if code is None else f"killed by {signal.Signals(-code).name}"
        last = f"{last}: {end}"
    elif not last.startswith("AssertionError: "):
        return None, last
    return last, last


def run(command: Sequence[str] = TRIAL) -> bool:
    """Try the kernels on the first GPU, record the outcome and print it; return whether they passed."""
    print("trying the convolutions for this GPU, once: ", end="", flush=True)
    start = time.monotonic()
    failure, line = attempt(command)
    kept = ""
    if failure is not None:
        try:
            record.write(record.kind(0), failure)
        except (OSError, RuntimeError) as error:
            kept = f"; this could not be recorded ({error}), so that they stay untried"
    forget()  # what has been chosen without the record
    verdict = {None: "could not be tried", "": "passed"}.get(failure, "failed; the Triton kernels run in their place")
    print(f"{verdict} after {time.monotonic() - start:.0f} s ({line}){kept}", flush=True)
    return failure == ""


def main() -> int:
    argparse.ArgumentParser(
        prog=record.COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    obstacle = hopper_obstacle(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"))
    if obstacle:
        print(f"error: {obstacle}", file=sys.stderr)
        return 2
    return 0 if run() else 1


if __name__ == "__main__":
    raise SystemExit(main())
