"""The encoder's linear layers, in training on a GPU with a kernel for the gradient of the bias."""

from __future__ import annotations

import torch
from glyphcrm_kernels import biased_linear
from glyphcrm_kernels._shared.operators import is_eager
from glyphcrm_kernels.registry import lacks_device
from torch import Tensor, nn

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.modeling.backend import kernel_backend
from glyphcrm.modeling.hanglyph import is_plain


def project(layer: nn.Linear, x: Tensor, config: GlyphCRMConfig) -> Tensor:
    """Return ``layer(x)``: by the fused operation where a GPU trains the bias of a layer that is only its weights."""
    if lacks_device("triton", x.device) or not torch.is_grad_enabled() or not is_plain(layer):
        return layer(x)
    weight, bias = layer.weight, layer.bias
    if bias is None or not bias.requires_grad or not is_eager((x, weight, bias)):
        return layer(x)
    return biased_linear(x, weight, bias, backend=kernel_backend(config, "biased_linear", x.device))
