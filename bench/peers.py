"""What each operation is timed beside: what one would write without this project, and other people's kernels.

All compute the same as the op, which is checked before anything is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from glyphcrm_kernels import unpack_bits
from glyphcrm_kernels.registry import OPS
from torch import Tensor

Inputs = dict[str, Tensor]  # by parameter name
Outputs = tuple[Tensor, ...]
EPS = 1e-12


@dataclass(frozen=True)
class Way:
    """One way to compute an op."""

    run: Callable[[Inputs, float], Outputs]  # from the inputs and the dropout probability
    # Into the memory order that this way works in; not timed, as a model would keep it from layer to layer.
    lay_out: Callable[[Inputs], Inputs] = lambda inputs: inputs
    compiled: bool = False  # through `torch.compile`, which takes seconds for each case
    training: bool = True  # whether it can be differentiated
    needs: str = ""  # pip package that has to be installed, as it is imported

    @property
    def missing(self) -> str:
        """Why it cannot run here, or an empty string."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return ""


def add_norm(device: str) -> dict[str, Way]:
    def reference(inputs: Inputs, p: float) -> Outputs:
        return (OPS["add_norm"].reference(**inputs, p=p, eps=EPS, training=True),)

    ways = {"unfused": Way(_unfused_add_norm), "torch.compile": _compiled(reference)}
    if device == "cuda":
        ways["liger"] = Way(_liger_add_norm, needs="liger_kernel")
        ways["flash-attn"] = Way(_flash_add_norm, needs="flash_attn")
    return ways


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


def glyph_stem(device: str) -> dict[str, Way]:
    return _of_pictures(device, drawn_stem, OPS["glyph_stem"].reference)


def glyph_stem_conv(device: str) -> dict[str, Way]:
    def run(memory_format: torch.memory_format, inputs: Inputs, p: float) -> Outputs:
        activation, shortcut = drawn_stem(memory_format, inputs, p)
        return F.relu(F.conv2d(activation, inputs["conv_weight"], inputs["conv_bias"])), shortcut

    return _of_pictures(device, run, OPS["glyph_stem_conv"].reference)


def _of_pictures(
    device: str, run: Callable[[torch.memory_format, Inputs, float], Outputs], reference: Callable[..., Outputs]
) -> dict[str, Way]:
    channels_last = partial(_channels_last, names=("weight", "conv_weight"))
    return {
        f"{_library(device)}, channels-last": Way(partial(run, torch.channels_last), channels_last),
        f"{_library(device)}, NCHW": Way(partial(run, torch.contiguous_format)),
        "torch.compile": _compiled(lambda inputs, p: reference(**inputs)),
    }


def drawn_stem(memory_format: torch.memory_format, inputs: Inputs, p: float) -> Outputs:
    """The paper's definition as it stands: pictures of three channels, then a convolution."""
    weight, rows = inputs["weight"], inputs["rows"]
    ink = unpack_bits(inputs["bitmaps"][rows], weight.dtype)
    positions = inputs["position_map"].to(weight.dtype).expand(len(rows), -1, -1, -1)
    pictures = torch.cat([ink, positions], 1).contiguous(memory_format=memory_format)
    activation = F.relu(F.conv2d(pictures, weight, inputs["bias"], padding=1))
    return activation, F.max_pool2d(activation, 2)


def glyph_conv(device: str, padding: int, last: bool) -> dict[str, Way]:
    """A convolution of HanGlyph with ReLU; the `last` of a residual block adds the shortcut and pools."""

    def plain(inputs: Inputs, p: float) -> Outputs:
        # Not the op's reference, whose output is always channels-last.
        y = F.conv2d(inputs["x"], inputs["weight"], inputs["bias"], padding=padding)
        if not last:
            return (F.relu(y),)
        return (F.max_pool2d(F.relu(y + inputs["residual"]), 2),)

    def fused(inputs: Inputs, p: float) -> Outputs:
        x, weight, bias, settings = inputs["x"], inputs["weight"], inputs["bias"], ([1, 1], [padding] * 2, [1, 1], 1)
        if not last:
            return (torch.cudnn_convolution_relu(x, weight, bias, *settings),)
        y = torch.cudnn_convolution_add_relu(x, weight, inputs["residual"], 1.0, bias, *settings)
        return (F.max_pool2d(y, 2),)

    def nchw(inputs: Inputs) -> Inputs:
        return {name: tensor.contiguous() for name, tensor in inputs.items()}

    filters_last = partial(_channels_last, names=("weight",))
    ways = {
        f"{_library(device)}, channels-last": Way(plain, filters_last),
        f"{_library(device)}, NCHW": Way(plain, nchw),
        "torch.compile": _compiled(plain, filters_last),
    }
    if device == "cuda":
        ways["cuDNN, fused ReLU"] = Way(fused, filters_last, training=False)
    return ways


def dropout_attention() -> dict[str, Way]:
    def sdpa(inputs: Inputs, p: float) -> Outputs:
        return (F.scaled_dot_product_attention(**inputs, dropout_p=p).transpose(1, 2),)

    return {"SDPA": Way(sdpa), "SDPA without dropout": Way(lambda inputs, p: sdpa(inputs, 0.0))}


def _library(device: str) -> str:
    return "cuDNN" if device == "cuda" else "conv2d"


def _channels_last(inputs: Inputs, names: tuple[str, ...]) -> Inputs:
    return {
        name: tensor.contiguous(memory_format=torch.channels_last) if name in names else tensor
        for name, tensor in inputs.items()
    }


def _compiled(
    function: Callable[[Inputs, float], Outputs], lay_out: Callable[[Inputs], Inputs] = lambda inputs: inputs
) -> Way:
    compiled: Any = None

    def run(inputs: Inputs, p: float) -> Outputs:
        nonlocal compiled
        # Made at the first call, as most runs never get here.
        compiled = compiled or torch.compile(function, dynamic=False)
        result: Outputs = compiled(inputs, p)
        return result

    return Way(run, lay_out, compiled=True)
