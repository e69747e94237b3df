"""What has another name in some of the versions of PyTorch and transformers that are supported."""

from __future__ import annotations

import inspect

from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Turn gradient checkpointing on."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def data_parallel(model: PreTrainedModel) -> DistributedDataParallel:
    """Return the model under DDP, whose buffers are not sent."""
    new, old = "forward_sync_buffers", "broadcast_buffers"
    name = new if new in inspect.signature(DistributedDataParallel).parameters else old
    return DistributedDataParallel(model, **{name: False})
