"""What the kernel benchmarks run: HanGlyph's operations at given sizes, and the ways to compute each.

The first way of a case is this project's own, as a model runs it (the Triton kernels on a GPU, the
PyTorch reference on a CPU); the others are its peers: what one would write without this project, and
other people's kernels. All of a case compute the same, which is checked before anything is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from glyphcrm_kernels import add_norm, glyph_conv, glyph_stem, unpack_bits
from glyphcrm_kernels.add_norm import add_norm_reference
from glyphcrm_kernels.glyph_conv import glyph_conv_reference
from glyphcrm_kernels.glyph_stem import glyph_stem_reference
from torch import Tensor

Inputs = dict[str, Any]  # tensors by parameter name
Outputs = tuple[Tensor, ...]
EPS = 1e-12
DROPOUT = 0.1  # in training, as in the paper's recipe
IMAGE = 48


@dataclass(frozen=True)
class Way:
    """One way to compute a case.

    Attributes:
        run: from the inputs and the dropout probability to the outputs.
        lay_out: brings the inputs into the memory order that this way works in; not timed, because a
            model of that kind would keep it from layer to layer.
        compiled: through `torch.compile`, which takes seconds for each case.
        training: whether it can be differentiated.
        needs: pip package that has to be installed, as it is imported.
    """

    run: Callable[[Inputs, float], Outputs]
    lay_out: Callable[[Inputs], Inputs] = lambda inputs: inputs
    compiled: bool = False
    training: bool = True
    needs: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot run here, or nothing."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return ""


@dataclass(frozen=True)
class Case:
    """An operation at given sizes.

    Attributes:
        op: the operation.
        size: its sizes, for people.
        draw: from a dtype to fresh random inputs on the device; floating-point ones are differentiated
            unless they are in `constant`.
        ways: by name, this project's first.
        unit: what its speed is measured in, "GB/s" or "TFLOP/s".
        flops: multiplications and additions that the result needs; a training step needs
            `training_flops` times as many.
        rows_read: for inputs of which only some rows are used, how many.
    """

    op: str
    size: str
    draw: Callable[[torch.dtype], Inputs]
    ways: Mapping[str, Way]
    unit: str
    flops: float
    training_flops: float = 3.0
    constant: tuple[str, ...] = ()
    rows_read: Mapping[str, int] = field(default_factory=dict)

    def leaves(self, inputs: Inputs) -> list[Tensor]:
        """Return the inputs that have gradients."""
        return [t for name, t in inputs.items() if t.is_floating_point() and name not in self.constant]

    def bytes_moved(self, inputs: Inputs, outputs: Outputs, training: bool) -> int:
        """Return the least traffic with memory: inputs read, outputs written; in training also inputs and

        gradients of the outputs read, gradients of the inputs written. What is kept in between comes on top
        in every way; for all ways of a case this figure is the same, so their GB/s compare as times do.
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


# add-norm --------------------------------------------------------------------------------------------


def _add_norm(inputs: Inputs, p: float) -> Outputs:
    return (add_norm(**inputs, p=p, eps=EPS, training=p > 0),)


def _add_norm_reference(inputs: Inputs, p: float) -> Outputs:
    return (add_norm_reference(**{"skip": None, "index": None, **inputs}, p=p, eps=EPS),)


def _summands(inputs: Inputs) -> Tensor:
    """Return residual plus, in the three-way case, a (tokens, d) copy of the skip rows."""
    if "skip" not in inputs:
        return inputs["residual"]
    return inputs["residual"] + inputs["skip"].index_select(0, inputs["index"])


def _unfused_add_norm(inputs: Inputs, p: float) -> Outputs:
    z = F.dropout(inputs["x"], p) + _summands(inputs)
    return (F.layer_norm(z, z.shape[-1:], inputs["weight"], inputs["bias"], EPS),)


def _liger_add_norm(inputs: Inputs, p: float) -> Outputs:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]

    z = F.dropout(inputs["x"], p) + _summands(inputs)
    return (LigerLayerNormFunction.apply(z, inputs["weight"], inputs["bias"], EPS),)


def _flash_add_norm(inputs: Inputs, p: float) -> Outputs:
    from flash_attn.ops.triton.layer_norm import layer_norm_fn  # type: ignore[import-not-found]

    residual = _summands(inputs)
    return (layer_norm_fn(inputs["x"], inputs["weight"], inputs["bias"], residual=residual, eps=EPS, dropout_p=p),)


def add_norm_case(device: str, tokens: int, width: int, rows: int | None) -> Case:
    """Two-way without `rows`, else three-way with so many rows of skip."""

    def draw(dtype: torch.dtype) -> Inputs:
        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        inputs = {"x": randn(tokens, width), "residual": randn(tokens, width)}
        inputs |= {"weight": 1 + 0.1 * randn(width), "bias": randn(width)}
        if rows is not None:
            inputs |= {"skip": randn(rows, width), "index": torch.randint(rows, (tokens,), device=device)}
        return inputs

    ways = {"unfused": Way(_unfused_add_norm), "torch.compile": Way(_compiled(_add_norm_reference), compiled=True)}
    if device == "cuda":
        ways |= {
            "liger": Way(_liger_add_norm, needs="liger_kernel"),
            "flash-attn": Way(_flash_add_norm, needs="flash_attn"),
        }
    kind = "2-way" if rows is None else f"3-way, {rows:,} rows"
    return Case(
        op="add_norm",
        size=f"{kind}, {tokens:,} x {width}",
        draw=draw,
        ways=_own(device, _add_norm, _add_norm_reference) | ways,
        unit="GB/s",
        flops=(8 if rows is None else 9) * tokens * width,
    )


# glyph stem ------------------------------------------------------------------------------------------


def _glyph_stem(inputs: Inputs, p: float) -> Outputs:
    return glyph_stem(**inputs)


def _glyph_stem_reference(inputs: Inputs, p: float) -> Outputs:
    return glyph_stem_reference(**inputs)


def _three_channels(memory_format: torch.memory_format) -> Callable[[Inputs, float], Outputs]:
    """The paper's definition as it stands: pictures of three channels, then a convolution."""

    def run(inputs: Inputs, p: float) -> Outputs:
        weight, rows = inputs["weight"], inputs["rows"]
        ink = unpack_bits(inputs["bitmaps"][rows], weight.dtype)
        positions = inputs["position_map"].to(weight.dtype).expand(len(rows), -1, -1, -1)
        pictures = torch.cat([ink, positions], 1).contiguous(memory_format=memory_format)
        activation = F.relu(F.conv2d(pictures, weight, inputs["bias"], padding=1))
        return activation, F.max_pool2d(activation, 2)

    return run


def glyph_stem_case(device: str, images: int, atlas_rows: int, channels: int) -> Case:
    """So many characters of an atlas."""

    def draw(dtype: torch.dtype) -> Inputs:
        axis = torch.linspace(-0.2, 0.2, IMAGE, device=device)
        return {
            "rows": torch.randperm(atlas_rows, device=device)[:images],
            "bitmaps": torch.randint(256, (atlas_rows, IMAGE * IMAGE // 8), dtype=torch.uint8, device=device),
            "weight": torch.randn(channels, 3, 3, 3, device=device, dtype=dtype) * 0.2,
            "bias": torch.randn(channels, device=device, dtype=dtype) * 0.1,
            "position_map": torch.stack(torch.meshgrid(axis, axis, indexing="xy")),
        }

    channels_last = _three_channels(torch.channels_last)
    library = "cuDNN" if device == "cuda" else "conv2d"
    ways = {
        f"{library}, channels-last": Way(channels_last, lambda inputs: _channels_last(inputs, "weight")),
        f"{library}, NCHW": Way(_three_channels(torch.contiguous_format)),
        "torch.compile": Way(_compiled(_glyph_stem_reference), compiled=True),
    }
    return Case(
        op="glyph_stem",
        size=f"{images:,} characters, C = {channels}",
        draw=draw,
        ways=_own(device, _glyph_stem, _glyph_stem_reference) | ways,
        unit="GB/s",
        flops=2.0 * images * IMAGE**2 * channels * 9,
        training_flops=2.0,  # nobody asks for the gradient of a picture
        constant=("position_map",),
        rows_read={"bitmaps": images},
    )


# glyph convolution -----------------------------------------------------------------------------------


def glyph_conv_case(
    device: str, images: int, side: int, inputs: int, outputs: int, size: int, padding: int = 0, last: bool = False
) -> Case:
    """A convolution of HanGlyph with ReLU; the `last` of a residual block adds the shortcut and pools."""
    out = side + 2 * padding - size + 1

    def draw(dtype: torch.dtype) -> Inputs:
        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        drawn = {
            "x": randn(images, inputs, side, side),
            "weight": randn(outputs, inputs, size, size) * (inputs * size * size) ** -0.5,
            "bias": randn(outputs) * 0.1,
        }
        if last:
            drawn["residual"] = randn(images, outputs, out, out)
        return _channels_last(drawn, "x", "residual")

    def own(given: Inputs, p: float) -> Outputs:
        return (glyph_conv(**given, relu=True, pool=last, padding=padding),)

    def reference(given: Inputs, p: float) -> Outputs:
        residual = given.get("residual")
        return (glyph_conv_reference(given["x"], given["weight"], given["bias"], residual, True, last, padding),)

    def fused(given: Inputs, p: float) -> Outputs:
        settings = [1, 1], [padding, padding], [1, 1], 1  # stride, padding, dilation, groups
        if last:
            y = torch.cudnn_convolution_add_relu(
                given["x"], given["weight"], given["residual"], 1.0, given["bias"], *settings
            )
            return (F.max_pool2d(y, 2),)
        return (torch.cudnn_convolution_relu(given["x"], given["weight"], given["bias"], *settings),)

    def all_channels_last(given: Inputs) -> Inputs:
        return _channels_last(given, "weight")

    def nchw(given: Inputs) -> Inputs:
        return {name: tensor.contiguous() for name, tensor in given.items()}

    if device == "cuda":
        ways = {
            "triton": Way(own),
            "cuDNN, channels-last": Way(reference, all_channels_last),
            "cuDNN, NCHW": Way(reference, nchw),
            "cuDNN, fused ReLU": Way(fused, all_channels_last, training=False),
        }
    else:
        ways = {"reference": Way(own), "conv2d, NCHW": Way(reference, nchw)}
    channels = f"{inputs}" if inputs == outputs else f"{inputs} to {outputs}"
    return Case(
        op="glyph_conv",
        size=f"{size}x{size}, {channels}, {side} to {out}{', residual, pool' if last else ''}, {images:,} characters",
        draw=draw,
        ways=ways | {"torch.compile": Way(_compiled(reference), all_channels_last, compiled=True)},
        unit="TFLOP/s",
        flops=2.0 * images * out**2 * outputs * inputs * size**2,
    )


def _channels_last(inputs: Inputs, *names: str) -> Inputs:
    return {
        name: tensor.contiguous(memory_format=torch.channels_last) if name in names else tensor
        for name, tensor in inputs.items()
    }


def _own(device: str, op: Callable[..., Outputs], reference: Callable[..., Outputs]) -> dict[str, Way]:
    if device == "cuda":
        return {"triton": Way(op), "reference": Way(reference)}
    return {"reference": Way(op)}


def _compiled(function: Callable[[Inputs, float], Outputs]) -> Callable[[Inputs, float], Outputs]:
    compiled: Any = None

    def run(inputs: Inputs, p: float) -> Outputs:
        nonlocal compiled
        # Made at the first call, as most runs of this file never get here.
        compiled = compiled or torch.compile(function, dynamic=False)
        result: Outputs = compiled(inputs, p)
        return result

    return run


# Sizes -----------------------------------------------------------------------------------------------


def cases(device: str, measure: bool) -> list[Case]:
    """Return what to run.

    On a GPU: a pre-training batch of the base model, 32 x 512 tokens of width 768, in news text 1,700
    distinct characters. On a CPU: what two cores compute in a second or so, `tiny`'s channels. When
    nothing is measured: as little as touches every way.
    """
    if not measure:
        tokens, rows, images, atlas_rows, c1, c2 = 32, 8, 1, 16, 16, 32
    elif device == "cuda":
        tokens, rows, images, atlas_rows, c1, c2 = 32 * 512, 1_700, 1_700, 28_019, 64, 128
    else:
        tokens, rows, images, atlas_rows, c1, c2 = 2_048, 400, 64, 1_000, 16, 32
    width = 768
    chosen = [
        add_norm_case(device, tokens, width, None),
        add_norm_case(device, tokens, width, rows),
        glyph_stem_case(device, images, atlas_rows, c1),
        glyph_conv_case(device, images, 32, c1, c1, 9, last=True),
        glyph_conv_case(device, images, 12, c1, c2, 3, padding=1),
    ]
    if device == "cuda":
        chosen += [
            glyph_conv_case(device, images, 48, c1, c1, 9),
            glyph_conv_case(device, images, 8, c2, c2, 3, last=True),
        ]
    return chosen
