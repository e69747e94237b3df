"""Running sums of what a step shows: losses, accuracies, tokens, distinct characters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glyphcrm.modeling import GlyphCRMForPreTrainingOutput

_FIELDS = ("mlm_loss", "labels", "mlm_right", "nsp_loss", "pairs", "nsp_right", "tokens", "distinct", "batches")
_COUNTED_BY = {"mlm": "labels", "nsp": "pairs"}


class Measures:
    """Sums over batches, `sums` (9,) float64, on the model's device; no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(_FIELDS), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, batch: dict[str, Tensor], outputs: GlyphCRMForPreTrainingOutput) -> None:
        """Add a batch of `PretrainingCollator` and what the model said of it."""
        labels, pairs = batch["labels"].flatten()[batch["prediction_index"]], batch["next_sentence_label"]
        logits, nsp_logits = outputs.prediction_logits, outputs.seq_relationship_logits
        assert outputs.mlm_loss is not None and outputs.nsp_loss is not None
        assert logits is not None and nsp_logits is not None
        values = (
            outputs.mlm_loss.double() * len(labels),
            len(labels),
            (logits.argmax(-1) == labels).sum(),
            outputs.nsp_loss.double() * len(pairs),
            len(pairs),
            (nsp_logits.argmax(-1) == pairs).sum(),
            batch["attention_mask"].sum(),
            len(batch["glyph_ids"]),
            1,
        )
        # `new_full`: to copy a number to a GPU would wait for it.
        self.sums += torch.stack(
            [value if isinstance(value, Tensor) else self.sums.new_full((), value) for value in values]
        )

    @staticmethod
    def means(sums: Sequence[float]) -> dict[str, float]:
        """Return what sums, which may be of several processes, come to.

        Losses in nats, accuracies in [0, 1], `tokens` a sum without padding, `distinct_characters` the mean
        over batches.
        """
        total = dict(zip(_FIELDS, sums, strict=True))
        means = {f"{task}_loss": total[f"{task}_loss"] / max(total[of], 1) for task, of in _COUNTED_BY.items()}
        means |= {f"{task}_accuracy": total[f"{task}_right"] / max(total[of], 1) for task, of in _COUNTED_BY.items()}
        return {**means, "tokens": total["tokens"], "distinct_characters": total["distinct"] / max(total["batches"], 1)}
