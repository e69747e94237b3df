"""How kernel results are judged: float64 truth, relative RMS error, poisoned outputs, guard bands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from glyphcrm_kernels._shared.optional_triton import INTERPRETED
from torch import Tensor

# The same tests run under Triton's interpreter on a CPU and, where there is one, on a GPU.
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

GUARD_BYTES = 4096  # on either side; a multiple of every alignment
POISON = 0xFF  # as float16, bfloat16, float32 and float64 all bytes 0xFF are NaN

FP32_TOLERANCE = 1e-6  # relative RMS
HALF_TOLERANCE = 2.0  # times PyTorch's own error


def relative_rms(actual: Tensor, truth: Tensor) -> float:
    """Return ``|actual - truth| / |truth|`` in float64; NaN in `actual` gives NaN."""
    actual, truth = actual.detach().double().cpu(), truth.detach().double().cpu()
    assert actual.shape == truth.shape, f"{tuple(actual.shape)} is not {tuple(truth.shape)}"
    scale = truth.norm()
    return float((actual - truth).norm() / scale) if scale else float((actual - truth).norm())


def assert_true(name: str, actual: Tensor, truth: Tensor, pytorch: Tensor) -> None:
    """Hold a kernel's result against the float64 truth.

    Args:
        name: of the result, for the message.
        actual: what the kernel gave.
        truth: float64, from the inputs as rounded to the tested dtype.
        pytorch: what PyTorch gives for the same inputs in the tested dtype; in float16 and bfloat16
            the kernel may be off by `HALF_TOLERANCE` times as much as that.
    """
    assert actual.dtype == pytorch.dtype, f"{name}: {actual.dtype} instead of {pytorch.dtype}"
    error = relative_rms(actual, truth)
    as_pytorch = HALF_TOLERANCE * relative_rms(pytorch, truth)
    if actual.dtype == torch.float64:
        allowed = 1e-12
    elif actual.dtype == torch.float32:
        allowed = FP32_TOLERANCE
    else:
        allowed = as_pytorch + torch.finfo(actual.dtype).eps * 1e-3
    assert error <= allowed, f"{name}: relative RMS error {error:.2e}, allowed {allowed:.2e}"


class GuardedBuffers:
    """Hands out tensors inside larger buffers of NaN, and later looks whether the surroundings changed.

    A read outside a tensor brings NaN into the result; a write outside changes a guard band.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, int]] = []

    def empty(self, *shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Stand in for `buffers.empty`: contiguous, filled with NaN (integers: all bits 1)."""
        dtype = dtype or like.dtype
        return self._reserve(torch.Size(shape).numel(), dtype, like.device).view(shape)

    def empty_nhwc(
        self, images: int, channels: int, height: int, width: int, *, like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Stand in for `buffers.empty_nhwc`, in the same way."""
        return self.empty(images, height, width, channels, like=like, dtype=dtype).permute(0, 3, 1, 2)

    def place(self, tensor: Tensor) -> Tensor:
        """Return `tensor` with the same strides inside a guarded buffer; gradients are asked for as before."""
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
        flat = self._reserve(span, tensor.dtype, tensor.device)
        placed = flat.as_strided(tensor.shape, tensor.stride(), flat.storage_offset())
        placed.copy_(tensor.detach())
        return placed.detach().requires_grad_(tensor.requires_grad)

    def assert_guards_unchanged(self) -> None:
        """Fail if anything was written before or behind one of the tensors."""
        for buffer, size in self._buffers:
            guards = torch.cat([buffer[:GUARD_BYTES], buffer[GUARD_BYTES + size :]])
            assert bool((guards == POISON).all()), f"a kernel wrote outside a buffer of {size} bytes"

    def _reserve(self, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = elements * dtype.itemsize
        end = -(-size // GUARD_BYTES) * GUARD_BYTES + GUARD_BYTES
        buffer = torch.full((GUARD_BYTES + end,), POISON, dtype=torch.uint8, device=device)
        self._buffers.append((buffer, size))
        return buffer[GUARD_BYTES : GUARD_BYTES + size].view(dtype)


def gradients(
    outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients of ``sum(outputs * cotangents)`` for `inputs`."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return list(torch.autograd.grad(outputs, inputs, list(cotangents)))
