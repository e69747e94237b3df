"""The operations of `glyphcrm_kernels` at given sizes: what is timed, exercised, and compiled ahead of time.

An op of the registry without cases is an error, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from glyphcrm_kernels.registry import OPS
from torch import Tensor

from bench import peers
from bench.peers import EPS, Inputs, Outputs, Way

DROPOUT = 0.1  # in training, as in the paper's recipe
IMAGE = 48


@dataclass(frozen=True)
class Sizes:
    """Amounts: sequences and their length, rows of skip, characters of an atlas, HanGlyph's channels, the encoder's."""

    sequences: int
    length: int
    rows: int
    images: int
    atlas_rows: int
    c1: int
    c2: int
    width: int = 768
    heads: int = 12
    least: bool = False  # pictures are as small as a convolution takes them

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


# A pre-training batch of the base model: in news text it has 1,700 distinct characters.
BASE = Sizes(sequences=32, length=512, rows=1_700, images=1_700, atlas_rows=28_019, c1=64, c2=128)
# What two cores compute in a second or so, with the channels of the shipped model.
CPU = Sizes(sequences=16, length=128, rows=400, images=64, atlas_rows=1_000, c1=16, c2=32)
# As little as touches every way.
SMOKE = Sizes(sequences=2, length=16, rows=8, images=2, atlas_rows=16, c1=16, c2=32)
# So little that a call's time is the host's.
HOST = Sizes(sequences=1, length=1, rows=2, images=2, atlas_rows=2, c1=4, c2=4, width=16, heads=4, least=True)


@dataclass(frozen=True)
class Draw:
    """Makes inputs; with ``numbers=torch.empty`` their memory is never touched."""

    dtype: torch.dtype
    device: str = "cpu"
    numbers: Callable[..., Tensor] = torch.randn

    def tensor(self, *shape: int, scale: float = 1.0) -> Tensor:
        drawn = self.numbers(shape, device=self.device, dtype=self.dtype)
        return drawn if scale == 1 or self.numbers is torch.empty else drawn * scale

    def nhwc(self, images: int, channels: int, side: int) -> Tensor:
        return self.tensor(images, side, side, channels).permute(0, 3, 1, 2)

    def below(self, most: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(most, shape, device=self.device, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """An operation at given sizes."""

    op: str  # its name in the registry
    size: str  # for people
    draw: Callable[[Draw], Inputs]  # makes the tensors, by parameter name
    unit: str  # of its speed, "GB/s" or "TFLOP/s"
    flops: float  # multiplications and additions that the result needs
    training_flops: float = 3.0  # how many times as many a training step needs
    settings: Mapping[str, Any] = field(default_factory=dict)  # the op's other arguments
    peers: Mapping[str, Way] = field(default_factory=dict)  # ways of others, by name
    drops: bool = False  # it has dropout, whose probability is its argument `p`
    constant: tuple[str, ...] = ()  # floating-point tensors that are not differentiated
    rows_read: Mapping[str, int] = field(default_factory=dict)  # of inputs of which only some rows are used
    quick: bool = False  # part of the quick static report, which still has every kernel

    @property
    def ways(self) -> dict[str, Way]:
        """The op's implementations by their names, then the peers."""
        return {name: Way(partial(self.run, name)) for name in OPS[self.op].implementations} | dict(self.peers)

    def arguments(self, inputs: Inputs, p: float) -> dict[str, Any]:
        """Return the op's arguments but `backend`."""
        return {**inputs, **self.settings, **({"p": p} if self.drops else {})}

    def run(self, backend: str, inputs: Inputs, p: float) -> Outputs:
        """Compute the op."""
        outputs = OPS[self.op].function(**self.arguments(inputs, p), backend=backend)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    def leaves(self, inputs: Inputs) -> list[Tensor]:
        """Return the inputs that have gradients."""
        return [t for name, t in inputs.items() if t.is_floating_point() and name not in self.constant]

    def differentiable(self, inputs: Inputs, training: bool) -> Inputs:
        """Return the same numbers (a set of inputs may be 2 GB), in training as leaves that require gradients."""
        leaves = {id(t) for t in self.leaves(inputs)}
        return {name: t.detach().requires_grad_(training and id(t) in leaves) for name, t in inputs.items()}

    def bytes_moved(self, inputs: Inputs, outputs: Outputs, training: bool) -> int:
        """Return the least traffic with memory: inputs read, outputs written, and in training the gradients.

        What is kept in between comes on top in every way; for all ways of a case this figure is the same.
        """
        read = sum(t.nbytes * self.rows_read.get(name, len(t)) // len(t) for name, t in inputs.items())
        written = sum(t.nbytes for t in outputs)
        if not training:
            return read + written
        return 2 * (read + written) + sum(t.nbytes for t in self.leaves(inputs))


def step(way: Way, case: Case, inputs: Inputs, p: float, cotangents: Outputs | None) -> tuple[Outputs, Outputs]:
    """Compute the outputs and, with `cotangents`, the gradients of the leaves."""
    if cotangents is None:
        with torch.no_grad():
            return way.run(inputs, p), ()
    outputs = way.run(inputs, p)
    return outputs, torch.autograd.grad(outputs, case.leaves(inputs), cotangents)


def all_cases(sizes: Sizes, device: str = "cpu") -> list[Case]:
    """Return the cases of every op of the registry.

    Raises `LookupError`: an op has none.
    """
    if missing := OPS.keys() - CASES.keys():
        raise LookupError(f"there are no cases of {', '.join(sorted(missing))}; add a function to CASES in {__file__}")
    return [case for name in OPS for case in CASES[name](sizes, device)]


def _add_norm(sizes: Sizes, device: str) -> list[Case]:
    tokens, width = sizes.tokens, sizes.width

    def case(rows: int | None) -> Case:
        def draw(make: Draw) -> Inputs:
            inputs = {"x": make.tensor(tokens, width), "residual": make.tensor(tokens, width)}
            inputs |= {"weight": 1 + make.tensor(width, scale=0.1), "bias": make.tensor(width)}
            if rows is not None:
                inputs |= {"skip": make.tensor(rows, width), "index": make.below(rows, tokens)}
            return inputs

        kind = "2-way" if rows is None else f"3-way, {rows:,} rows"
        return Case(
            "add_norm",
            f"{kind}, {tokens:,} x {width}",
            draw,
            "GB/s",
            flops=(8 if rows is None else 9) * tokens * width,
            settings={"eps": EPS, "training": True},
            peers=peers.add_norm(device),
            drops=True,
            quick=rows is not None,
        )

    return [case(None), case(sizes.rows)]


def _pictures(sizes: Sizes, make: Draw) -> Inputs:
    """So many characters of an atlas, and the stem's parameters."""
    axis = torch.linspace(-0.2, 0.2, IMAGE, device=make.device)
    return {
        "rows": torch.randperm(sizes.atlas_rows, device=make.device)[: sizes.images],
        "bitmaps": make.below(256, sizes.atlas_rows, IMAGE * IMAGE // 8, dtype=torch.uint8),
        "weight": make.tensor(sizes.c1, 3, 3, 3, scale=0.2),
        "bias": make.tensor(sizes.c1, scale=0.1),
        "position_map": torch.stack(torch.meshgrid(axis, axis, indexing="xy")),
    }


def _glyph_stem(sizes: Sizes, device: str) -> list[Case]:
    return [
        Case(
            "glyph_stem",
            f"{sizes.images:,} characters, C = {sizes.c1}",
            partial(_pictures, sizes),
            "GB/s",
            flops=2.0 * sizes.images * IMAGE**2 * sizes.c1 * 9,
            training_flops=2.0,  # nobody asks for the gradient of a picture
            peers=peers.glyph_stem(device),
            constant=("position_map",),
            rows_read={"bitmaps": sizes.images},
            quick=True,
        )
    ]


def _filter(make: Draw, inputs: int, outputs: int, size: int) -> tuple[Tensor, Tensor]:
    scale = (inputs * size * size) ** -0.5
    return make.tensor(outputs, inputs, size, size, scale=scale), make.tensor(outputs, scale=0.1)


def _glyph_stem_conv(sizes: Sizes, device: str) -> list[Case]:
    def draw(make: Draw) -> Inputs:
        weight, bias = _filter(make, sizes.c1, sizes.c1, 9)
        return {**_pictures(sizes, make), "conv_weight": weight, "conv_bias": bias}

    (stem,) = _glyph_stem(sizes, device)
    return [
        Case(
            "glyph_stem_conv",
            f"{stem.size}, 9x9",
            draw,
            "TFLOP/s",
            flops=stem.flops + 2.0 * sizes.images * 40**2 * sizes.c1**2 * 81,
            peers=peers.glyph_stem_conv(device),
            constant=stem.constant,
            rows_read=stem.rows_read,
        )
    ]


def _glyph_conv(sizes: Sizes, device: str) -> list[Case]:
    def case(
        side: int, channels: tuple[int, int], size: int, padding: int = 0, last: bool = False, **more: Any
    ) -> Case:
        inputs, outputs = channels
        if sizes.least:
            side = size - 2 * padding + last  # two places a side, where these are pooled
        out = side + 2 * padding - size + 1

        def draw(make: Draw) -> Inputs:
            weight, bias = _filter(make, inputs, outputs, size)
            drawn = {"x": make.nhwc(sizes.images, inputs, side), "weight": weight, "bias": bias}
            return drawn | ({"residual": make.nhwc(sizes.images, outputs, out)} if last else {})

        named = f"{inputs}" if inputs == outputs else f"{inputs} to {outputs}"
        tail = ", residual, pool" if last else ""
        return Case(
            "glyph_conv",
            f"{size}x{size}, {named}, {side} to {out}{tail}, {sizes.images:,} characters",
            draw,
            "TFLOP/s",
            flops=2.0 * sizes.images * out**2 * outputs * inputs * size**2,
            settings={"relu": True, "pool": last, "padding": padding},
            peers=peers.glyph_conv(device, padding, last),
            **more,
        )

    c1, c2 = sizes.c1, sizes.c2
    return [
        case(48, (c1, c1), 9, quick=True),
        case(32, (c1, c1), 9, last=True),
        case(12, (c1, c2), 3, padding=1),
        case(8, (c2, c2), 3, last=True, quick=True),
    ]


def _dropout_attention(sizes: Sizes, device: str) -> list[Case]:
    heads, size = sizes.heads, sizes.width // sizes.heads

    def draw(make: Draw) -> Inputs:
        # As the projections leave them: the heads of a token side by side.
        shape = (sizes.sequences, sizes.length, heads, size)
        return {name: make.tensor(*shape).transpose(1, 2) for name in ("query", "key", "value")}

    return [
        Case(
            "dropout_attention",
            f"{sizes.sequences} x {sizes.length} tokens, {heads} heads of {size}",
            draw,
            "TFLOP/s",
            flops=4.0 * sizes.sequences * sizes.length**2 * sizes.width,
            settings={"scaling": size**-0.5},
            peers=peers.dropout_attention(),
            drops=True,
        )
    ]


def _biased_linear(sizes: Sizes, device: str) -> list[Case]:
    def case(n: int, d: int) -> Case:
        def draw(make: Draw) -> Inputs:
            weight = make.tensor(d, n, scale=n**-0.5)
            return {"x": make.tensor(sizes.tokens, n), "weight": weight, "bias": make.tensor(d, scale=0.1)}

        return Case(
            "biased_linear",
            f"{sizes.tokens:,} x {n} to {d}",
            draw,
            "TFLOP/s",
            flops=2.0 * sizes.tokens * n * d,
            quick=n == d,
        )

    return [case(sizes.width, sizes.width), case(sizes.width, 4 * sizes.width)]


CASES: dict[str, Callable[[Sizes, str], list[Case]]] = {
    "add_norm": _add_norm,
    "glyph_stem": _glyph_stem,
    "glyph_conv": _glyph_conv,
    "glyph_stem_conv": _glyph_stem_conv,
    "dropout_attention": _dropout_attention,
    "biased_linear": _biased_linear,
}
