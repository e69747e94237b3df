"""Which implementation of the fused operations a model runs."""

from __future__ import annotations

import os

import torch
from glyphcrm_kernels import BACKENDS, choice

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError

BACKEND_VARIABLE = "GLYPHCRM_KERNEL_BACKEND"


def _from_environment() -> str:
    chosen = os.environ.get(BACKEND_VARIABLE, "")
    if chosen and chosen not in BACKENDS:
        raise UserError(f"{BACKEND_VARIABLE}={chosen}: it must be one of {', '.join(BACKENDS)}")
    return chosen


# The environment's choice overrides that of every configuration in the process; it is read here, once.
OVERRIDE = _from_environment()


def kernel_backend(config: GlyphCRMConfig) -> str:
    """Return one of `BACKENDS`: the environment's choice, else the configuration's."""
    return OVERRIDE or config.kernel_backend


def check_kernel_backend(config: GlyphCRMConfig, device: torch.device) -> None:
    """Raise `UserError` if the chosen implementation cannot run on `device`, before any work is done."""
    x = torch.empty(0, config.hidden_size, device=device)
    weight = x.new_empty(config.hidden_size)
    try:
        choice("add_norm", x, x, weight, weight, backend=kernel_backend(config))
    except ValueError as error:
        raise UserError(str(error)) from error
