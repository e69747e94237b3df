"""What pre-training asks of a model: masked characters and next sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from glyphcrm.data.collator import padded_batch
from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.data.packed_collator import PackedCollator
from glyphcrm.data.pretraining import PretrainingStream
from glyphcrm.pretraining.measures import Measures
from glyphcrm.training.machine import Machine
from glyphcrm.training.progress import Entry
from glyphcrm.training.step_loader import Batch, MakeMicroBatches, PaddedMicroBatches

VALIDATED = ("loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy")


class PretrainingObjective:
    """The `Objective` of a `GlyphCRMForPreTraining` or a `BertBaseline`, on batches of `padded_batch`.

    * The MLM loss is the mean over all labels of an optimiser step, over all its micro-batches and processes; the NSP
      loss likewise over its pairs. How a step is cut up does not change it.
    * With `packed`, the micro-batches of training are its rows; else they are padded.
    * Logs carry MLM and NSP loss and accuracy, real tokens per second, and distinct characters per micro-batch.
    """

    def __init__(
        self,
        samples: PretrainingStream,
        validation: PretrainingStream,
        micro_batch_size: int,
        machine: Machine,
        keep_checkpoints: int,
        packed: PackedCollator | None = None,
    ) -> None:
        self.samples = samples
        self.micro_batches: MakeMicroBatches = packed or PaddedMicroBatches(padded_batch, micro_batch_size)
        self._machine, self._keep_checkpoints = machine, keep_checkpoints
        self._measures = Measures(machine.device)
        # Every process reads some of the batches, and each sample is read once.
        size = 2 * micro_batch_size
        batches = [list(range(at, min(at + size, len(validation)))) for at in range(0, len(validation), size)]
        self._validation: DataLoader[Batch] = DataLoader(
            validation, batch_sampler=batches[machine.rank :: machine.world], collate_fn=padded_batch
        )

    @property
    def sums(self) -> Tensor:
        """See `Measures`."""
        return self._measures.sums

    def counts(self, batch: Batch) -> Tensor:
        """Return how many characters and pairs are to be predicted: (2,) int64."""
        return torch.stack([(batch[name] != IGNORED_LABEL).sum() for name in ("labels", "next_sentence_label")])

    def loss(self, model: PreTrainedModel, batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
        """Return a micro-batch's share, (), of the step's MLM and NSP loss."""
        outputs = model(**inputs)
        self._measures.add(batch, outputs)
        mlm_share, nsp_share = self.counts(batch) * totals.reciprocal()
        return outputs.mlm_loss * mlm_share + outputs.nsp_loss * nsp_share

    def entry(self, sums: Sequence[float], seconds: float) -> Entry:
        """Return the means of `Measures`, with tokens per second."""
        means = Measures.means(sums)
        return {**means, "tokens_per_second": means.pop("tokens") / seconds}

    @torch.no_grad()
    def validate(self, model: PreTrainedModel) -> Entry:
        """Return the losses and accuracies on the validation samples."""
        measures = Measures(self._machine.device)
        for batch in self._validation:
            inputs = self._machine.on_device(batch)
            with self._machine.autocast():
                outputs = model(**inputs)
            measures.add(inputs, outputs)
        means = Measures.means(self._machine.sum(measures.sums).tolist())
        means["loss"] = means["mlm_loss"] + means["nsp_loss"]
        return {f"eval_{name}": means[name] for name in VALIDATED}

    def is_over(self, history: Sequence[Entry]) -> bool:
        """Never before the schedule is."""
        return False

    def kept(self, steps: Sequence[int], history: Sequence[Entry]) -> set[int]:
        """Keep the newest ones."""
        return set(steps[-self._keep_checkpoints :])

    def status(self, history: Sequence[Entry]) -> str:
        """Return MLM loss and accuracy, NSP accuracy, tokens per second, distinct characters of the last log."""
        last = next((entry for entry in reversed(history) if "mlm_loss" in entry), None)
        if last is None:
            return ""
        return (
            f"mlm {last['mlm_loss']:.3f} acc {last['mlm_accuracy']:.1%} "
            f"nsp {last['nsp_loss']:.3f} acc {last['nsp_accuracy']:.1%} "
            f"{last['tokens_per_second']:.0f} tokens/s {last['distinct_characters']:.0f} distinct"
        )

    def remark(self, entry: Entry) -> str | None:
        """Return a validation's losses and accuracies."""
        if "eval_mlm_loss" not in entry:
            return None
        return (
            f"step {entry['step']}: validation mlm {entry['eval_mlm_loss']:.4f} "
            f"acc {entry['eval_mlm_accuracy']:.1%}, nsp {entry['eval_nsp_loss']:.4f} "
            f"acc {entry['eval_nsp_accuracy']:.1%}"
        )
