"""Which implementation of the fused operations a model runs."""

from __future__ import annotations

import os

import torch
from glyphcrm_kernels import BACKENDS, choice

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError

BACKEND_VARIABLE = "GLYPHCRM_KERNEL_BACKEND"


# The environment's choice overrides that of every configuration in the process; it is read here, once.
OVERRIDE = os.environ.get(BACKEND_VARIABLE, "")
if OVERRIDE and OVERRIDE not in BACKENDS:
    raise UserError(f"{BACKEND_VARIABLE}={OVERRIDE}: it must be one of {', '.join(BACKENDS)}")


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
