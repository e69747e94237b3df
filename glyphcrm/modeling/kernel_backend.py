"""Which implementation of the fused operations a model runs."""

from __future__ import annotations

import os

import torch
from glyphcrm_kernels.backend import use_triton

from glyphcrm.configuration import KERNEL_BACKENDS, GlyphCRMConfig
from glyphcrm.errors import UserError

# Overrides `kernel_backend` of every configuration in the process.
BACKEND_VARIABLE = "GLYPHCRM_KERNEL_BACKEND"


def kernel_backend(config: GlyphCRMConfig) -> str:
    """Return "auto", "triton" or "reference": the environment's choice, else the configuration's."""
    chosen = os.environ.get(BACKEND_VARIABLE)
    if not chosen:
        return config.kernel_backend
    if chosen not in KERNEL_BACKENDS:
        raise UserError(f"{BACKEND_VARIABLE}={chosen}: it must be one of {', '.join(KERNEL_BACKENDS)}")
    return chosen


def check_kernel_backend(config: GlyphCRMConfig, device: torch.device) -> None:
    """Raise `UserError` if the chosen implementation cannot run on `device`, before any work is done."""
    try:
        use_triton("kernel_backend", kernel_backend(config), model=torch.empty(0, device=device))
    except ValueError as error:
        raise UserError(str(error)) from error
