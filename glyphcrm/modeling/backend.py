"""Where a model runs, and which implementation of the fused operations."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from glyphcrm_kernels import BACKENDS, choice
from glyphcrm_kernels._shared.operators import is_exporting
from glyphcrm_kernels.registry import OPS, lacks_device
from torch import nn

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError

AnyModule = TypeVar("AnyModule", bound=nn.Module)
BACKEND_VARIABLE = "GLYPHCRM_KERNEL_BACKEND"


# The environment's choice overrides that of every configuration in the process; it is read here, once.
OVERRIDE = os.environ.get(BACKEND_VARIABLE, "")
if OVERRIDE and OVERRIDE not in BACKENDS:
    raise UserError(f"{BACKEND_VARIABLE}={OVERRIDE}: it must be one of {', '.join(BACKENDS)}")


# What a model runs for an operation that has no implementation of the chosen name.
STAND_INS = {"hopper": "triton", "triton": "reference", "cpu": "reference"}


def kernel_backend(config: GlyphCRMConfig, op: str = "glyph_conv", device: torch.device | None = None) -> str:
    """Return one of `BACKENDS` for an operation: the environment's choice, else the configuration's, or its stand-in.

    Both are wishes for devices that can have them: for tensors on a `device` that none of the chosen kernels run on,
    "auto" is returned, so that a model for a GPU is built and loaded on a CPU. `glyph_conv` has an implementation of
    every name. A graph that is exported consists of PyTorch's own operators.
    """
    if is_exporting():
        return "reference"
    backend = OVERRIDE or config.kernel_backend
    if device is not None and lacks_device(backend, device):
        return "auto"
    while backend != "auto" and backend not in OPS[op].implementations:
        backend = STAND_INS[backend]
    return backend


def check_kernel_backend(config: GlyphCRMConfig, device: torch.device) -> None:
    """Raise `UserError` if the chosen implementation cannot run on `device`, before any work is done."""
    x = torch.empty(0, 4, 1, 1, device=device)
    try:
        choice("glyph_conv", x, x.new_empty(4, 4, 1, 1), x.new_empty(4), backend=kernel_backend(config))
    except ValueError as error:
        raise UserError(str(error)) from error


def on_accelerator(model: AnyModule) -> AnyModule:
    """Move a model to the GPU, or the CPU if there is none, and return it."""
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
