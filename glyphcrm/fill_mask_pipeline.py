"""transformers' fill-mask pipeline for models that predict fewer characters than they read."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from transformers.pipelines import PIPELINE_REGISTRY, FillMaskPipeline


class ReadOnlyTargetsPipeline(FillMaskPipeline):
    """As transformers', but a target that the model can read and not predict is replaced by [UNK], with a warning."""

    def get_target_ids(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Return the ids of the targets, each once."""
        ids = super().get_target_ids(*args, **kwargs)
        tokenizer: Any = self.tokenizer
        model: Any = self.model
        read_only = ids >= getattr(model.config, "vocab_size", len(tokenizer))
        remedy = ""
        if hasattr(model, "predicts"):
            read_only = ~model.predicts(torch.from_numpy(ids).to(model.device)).cpu().numpy()
            remedy = "; model.extend_decoder() lets it predict all that it reads"
        if not read_only.any():
            return ids
        names = " ".join(tokenizer.convert_ids_to_tokens(ids[read_only].tolist()))
        warnings.warn(
            f"targets that the model reads but does not predict, taken as [UNK]: {names}{remedy}", stacklevel=2
        )
        return np.unique(np.where(read_only, tokenizer.unk_token_id, ids))


def register() -> None:
    """Let ``pipeline("fill-mask")`` be this one; for models that predict all that they read nothing changes."""
    PIPELINE_REGISTRY.supported_tasks["fill-mask"]["impl"] = ReadOnlyTargetsPipeline
