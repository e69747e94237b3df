"""The launches that the static report compiles: every kernel, at the sizes of a pre-training batch.

A launch is recorded from the operator that makes it: the operator's body runs on meta tensors, so
buffers and grid are the operator's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from glyphcrm_kernels.launch import Launch, Target
from torch import Tensor

TOKENS = 32 * 512
WIDTH = 768
CHARACTERS = 1_700  # distinct ones in so many tokens of news text
ATLAS_ROWS = 30_000
IMAGE = 48

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Case:
    """A kernel at given sizes.

    Attributes:
        name: what the report calls it.
        operator: "module.operator" in glyphcrm_kernels.
        arguments: from the dtype to the operator's arguments.
        flops: multiplications and additions that the result needs.
        rows_read: for tensors of which only some rows are used, by the kernel's parameter name, how many.
        quick: whether it is part of the quick report, which still has every kernel.
    """

    name: str
    operator: str
    arguments: Callable[[torch.dtype], tuple[Any, ...]]
    flops: float
    rows_read: dict[str, int] = field(default_factory=dict)
    quick: bool = False

    def launch(self, target: Target, dtype: torch.dtype) -> Launch:
        """Return what the operator would launch on `target`."""
        module_name, operator = self.operator.split(".")
        module = import_module(f"glyphcrm_kernels.{module_name}")
        recorded: list[Launch] = []
        with (
            mock.patch.object(module, "target_of", return_value=target),
            mock.patch.object(Launch, "run", lambda launch: recorded.append(launch)),
        ):
            getattr(module, operator)._init_fn(*self.arguments(dtype))
        (launch,) = recorded
        return launch

    def bytes_moved(self, launch: Launch) -> int:
        """Return the least traffic with memory: each tensor read or written once."""
        return sum(
            tensor.nbytes * self.rows_read.get(name, tensor.shape[0]) // tensor.shape[0]
            for name, tensor in launch.arguments.items()
            if isinstance(tensor, Tensor) and tensor.dim()
        )


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _nhwc(images: int, channels: int, side: int, dtype: torch.dtype) -> Tensor:
    return _meta(images, side, side, channels, dtype=dtype).permute(0, 3, 1, 2)


def _add_norm_cases() -> list[Case]:
    def tokens(dtype: torch.dtype) -> Tensor:
        return _meta(TOKENS, WIDTH, dtype=dtype)

    def gathered(dtype: torch.dtype, skip: bool) -> tuple[Tensor | None, Tensor | None]:
        return (_meta(CHARACTERS, WIDTH, dtype=dtype), _meta(TOKENS, dtype=torch.int64)) if skip else (None, None)

    def forward(skip: bool, p: float) -> Callable[[torch.dtype], tuple[Any, ...]]:
        def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
            seed = _meta(1, dtype=torch.int64) if p else None
            return tokens(dtype), tokens(dtype), _meta(WIDTH), _meta(WIDTH), *gathered(dtype, skip), seed, p, 1e-12

        return arguments

    def backward(skip: bool, p: float) -> Callable[[torch.dtype], tuple[Any, ...]]:
        def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
            seed = _meta(1, dtype=torch.int64) if p else None
            inputs = [tokens(dtype) for _ in range(3)]  # dy, x, residual
            return *inputs, _meta(WIDTH), _meta(TOKENS), _meta(TOKENS), *gathered(dtype, skip), seed, p

        return arguments

    def segments(dtype: torch.dtype) -> tuple[Any, ...]:
        return tokens(dtype), _meta(TOKENS, dtype=torch.int64), CHARACTERS, dtype

    op, backward_op, elements = "add_norm._add_norm", "add_norm._add_norm_backward", TOKENS * WIDTH
    return [
        Case("add_norm 2-way, inference", op, forward(False, 0.0), 8 * elements),
        Case("add_norm 2-way, dropout", op, forward(False, 0.1), 9 * elements),
        Case("add_norm 3-way, dropout", op, forward(True, 0.1), 10 * elements, quick=True),
        Case("add_norm backward 2-way", backward_op, backward(False, 0.0), 18 * elements),
        Case("add_norm backward 3-way, dropout", backward_op, backward(True, 0.1), 21 * elements, quick=True),
        Case("add_norm gradient of skip", "add_norm._segment_sum", segments, elements, quick=True),
    ]


def _stem_cases(channels: int, quick: bool) -> list[Case]:
    def forward(dtype: torch.dtype) -> tuple[Any, ...]:
        rows, bitmaps = _meta(CHARACTERS, dtype=torch.int64), _meta(ATLAS_ROWS, IMAGE * IMAGE // 8, dtype=torch.uint8)
        return rows, bitmaps, _meta(9, channels), _meta(IMAGE, IMAGE, channels), dtype

    def backward(dtype: torch.dtype) -> tuple[Any, ...]:
        activation = _nhwc(CHARACTERS, channels, IMAGE, dtype)
        rows, bitmaps, *_ = forward(dtype)
        return rows, bitmaps, activation, activation, _nhwc(CHARACTERS, channels, IMAGE // 2, dtype), torch.float32

    flops = 2.0 * CHARACTERS * IMAGE * IMAGE * channels * 9
    read = {"bitmaps": CHARACTERS}
    return [
        Case(f"glyph_stem {channels}", "glyph_stem._glyph_stem", forward, flops, read, quick),
        Case(f"glyph_stem backward {channels}", "glyph_stem._glyph_stem_backward", backward, flops, read, quick),
    ]


@dataclass(frozen=True)
class _Convolution:
    """One of HanGlyph's convolutions: side of its input, channels, filter, and what its epilogue does."""

    side: int
    inputs: int
    outputs: int
    size: int
    padding: int = 0
    last: bool = False  # of a residual block: residual and pooling

    @property
    def out(self) -> int:
        return self.side + 2 * self.padding - self.size + 1

    @property
    def flops(self) -> float:
        return 2.0 * CHARACTERS * self.out**2 * self.outputs * self.inputs * self.size**2

    @property
    def name(self) -> str:
        channels = f"{self.inputs}" if self.inputs == self.outputs else f"{self.inputs} to {self.outputs}"
        return f"{self.size}x{self.size} {channels}, {self.side} to {self.out}"

    def x(self, dtype: torch.dtype) -> Tensor:
        return _nhwc(CHARACTERS, self.inputs, self.side, dtype)

    def y(self, dtype: torch.dtype, pooled: bool = False) -> Tensor:
        return _nhwc(CHARACTERS, self.outputs, self.out // 2 if pooled else self.out, dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        return _meta(self.outputs, self.inputs, self.size, self.size, dtype=dtype)

    def forward(self, quick: bool = False) -> Case:
        def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
            residual = self.y(dtype) if self.last else None
            return self.x(dtype), self.weight(dtype), _meta(self.outputs), residual, True, self.last, self.padding

        name = f"glyph_conv {self.name}" + (", residual, pool" if self.last else "")
        return Case(name, "glyph_conv._glyph_conv", arguments, self.flops, quick=quick)

    def epilogue_backward(self, quick: bool = False) -> Case:
        def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
            dy = self.y(dtype, self.last)
            winner = self.y(torch.uint8, True) if self.last else _meta(0, dtype=torch.uint8)
            return dy, self.y(dtype, self.last), winner, True, self.last, torch.float32

        name = f"glyph_conv epilogue backward {self.name}"
        return Case(name, "glyph_conv._epilogue_backward", arguments, self.y(torch.uint8).numel(), quick=quick)

    def data_gradient(self, quick: bool = False) -> Case:
        def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
            return self.y(dtype), self.weight(dtype), self.padding

        name = f"glyph_conv data gradient {self.name}"
        return Case(name, "glyph_conv._data_gradient", arguments, self.flops, quick=quick)

    def weight_gradient(self, quick: bool = False) -> Case:
        def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
            return self.y(dtype), self.x(dtype), self.weight(dtype), self.padding

        name = f"glyph_conv weight gradient {self.name}"
        return Case(name, "glyph_conv._weight_gradient", arguments, self.flops, quick=quick)


def _conv_cases(c1: int, c2: int, quick: bool) -> list[Case]:
    first, last = _Convolution(48, c1, c1, 9), _Convolution(32, c1, c1, 9, last=True)
    expand, small = _Convolution(12, c1, c2, 3, padding=1), _Convolution(8, c2, c2, 3, last=True)
    cases = [
        first.forward(quick),
        last.forward(),
        expand.forward(quick),
        small.forward(quick),
        first.epilogue_backward(),
        last.epilogue_backward(quick),
        first.data_gradient(quick),
        expand.data_gradient(),
        small.data_gradient(),
        first.weight_gradient(quick),
        expand.weight_gradient(),
        small.weight_gradient(),
    ]
    return cases


# The convolution that most of the model's arithmetic goes through.
NINE_BY_NINE = _Convolution(48, 64, 64, 9).forward().name

CASES = [
    *_add_norm_cases(),
    *_stem_cases(64, quick=True),
    *_conv_cases(64, 128, quick=True),
    # The channels of the presets "small" and "tiny".
    *_stem_cases(32, quick=False),
    *_conv_cases(32, 64, quick=False),
    *_stem_cases(16, quick=False),
    *_conv_cases(16, 32, quick=False),
]
