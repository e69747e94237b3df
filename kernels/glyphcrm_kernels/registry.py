"""All operations: the one list that whatever goes through them reads."""

from __future__ import annotations

from typing import Any

import torch

from glyphcrm_kernels._shared import gpus
from glyphcrm_kernels._shared.dispatch import Choice, Op
from glyphcrm_kernels.addnorm import api as addnorm
from glyphcrm_kernels.attention import api as attention
from glyphcrm_kernels.biasedlinear import api as biasedlinear
from glyphcrm_kernels.conv import api as conv
from glyphcrm_kernels.stem import api as stem
from glyphcrm_kernels.stemconv import api as stemconv

_APIS = (addnorm, stem, conv, stemconv, attention, biasedlinear)
OPS: dict[str, Op] = {api.OP.name: api.OP for api in _APIS}


def lacks_device(backend: str, device: torch.device) -> bool:
    """Return whether the kernels of that name run on no device such as this one, whatever the arguments are."""
    on_gpus_alone = backend == "hopper" or (backend == "triton" and not gpus.INTERPRETED)
    return on_gpus_alone and device.type != "cuda"


def choice(op: str, *args: Any, **kwargs: Any) -> Choice:
    """Return which implementation of an op would run, and why none that is preferred to it; nothing is computed.

    Args:
        op: its name, a key of `OPS`.
        args, kwargs: the op's own arguments, `backend` included.

    Raises:
        ValueError: there is no such op, or the op itself would raise it.
    """
    if op not in OPS:
        raise ValueError(f"there is no op {op!r}; there are {', '.join(OPS)}")
    return OPS[op].choice(*args, **kwargs)
