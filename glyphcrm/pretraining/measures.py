"""Running sums of what a step shows: losses, accuracies, tokens, distinct characters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.modeling import GlyphCRMForPreTrainingOutput

_FIELDS = ("mlm_loss", "labels", "mlm_right", "nsp_loss", "pairs", "nsp_right", "tokens", "distinct", "batches")
_COUNTED_BY = {"mlm": "labels", "nsp": "pairs"}


class Measures:
    """Sums over batches, `sums` (9,) float64, on the model's device; no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(_FIELDS), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, batch: dict[str, Tensor], outputs: GlyphCRMForPreTrainingOutput) -> None:
        """Add a batch of `padded_batch`, or a packed one, and what the model said of it."""
        labels, pairs = batch["labels"], batch["next_sentence_label"]
        if labels.dim() > 1:
            labels = labels.flatten()[batch["prediction_index"]]
        logits, nsp_logits = outputs.prediction_logits, outputs.seq_relationship_logits
        assert outputs.mlm_loss is not None and outputs.nsp_loss is not None
        assert logits is not None and nsp_logits is not None
        label_count, pair_count = ((values != IGNORED_LABEL).sum() for values in (labels, pairs))
        if "attention_mask" in batch:
            tokens = batch["attention_mask"].sum()
        else:  # where the padding behind the last pair starts
            tokens = batch["cu_seq_lens_q"].index_select(0, pair_count.view(1)).squeeze(0)
        values = (
            outputs.mlm_loss.double() * label_count,
            label_count,
            (logits.argmax(-1) == labels).sum(),
            outputs.nsp_loss.double() * pair_count,
            pair_count,
            (nsp_logits.argmax(-1) == pairs).sum(),
            tokens,
            (batch["glyph_ids"].diff() > 0).sum() + 1,  # they rise, and may be filled up
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
