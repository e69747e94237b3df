"""The encoder's linear layers, in training on a GPU with a kernel for the gradient of the bias."""

from __future__ import annotations

import torch
from glyphcrm_kernels import biased_linear
from glyphcrm_kernels._shared.operators import is_eager
from torch import Tensor, nn

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.modeling.backend import kernel_backend
from glyphcrm.modeling.hanglyph import is_plain

# Of a result: below, PyTorch's sum takes an H200 less than 10 us, which is less than a further call takes the host.
WORTHWHILE = 1 << 22


def project(layer: nn.Linear, x: Tensor, config: GlyphCRMConfig) -> Tensor:
    """Return ``layer(x)``; by `biased_linear` where a GPU trains the bias of a layer that is no more than its weights.

    "auto" takes it for results of at least `WORTHWHILE` elements, a named implementation for all.
    """
    weight, bias = layer.weight, layer.bias
    # A compiler, which sums by itself, is shown no sizes, or it would make a graph for either side of the threshold.
    if not torch.is_grad_enabled() or not is_plain(layer) or bias is None or not is_eager((x, weight, bias)):
        return layer(x)
    backend = kernel_backend(config, "biased_linear", x.device)
    pays = x.is_cuda and x.shape[:-1].numel() * len(weight) >= WORTHWHILE if backend == "auto" else backend == "triton"
    return biased_linear(x, weight, bias, backend=backend) if pays and bias.requires_grad else layer(x)
