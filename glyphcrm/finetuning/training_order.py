"""The order in which training reads its features: a function of the seed alone, so that a run can continue anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

from glyphcrm.finetuning.encoding import Feature


class TrainingOrder(Dataset[Feature]):
    """All epochs one after the other, each shuffled anew with features of similar length side by side.

    Whole batches of `batch_size` features, over all processes: what the last one lacks comes from a further shuffle.
    """

    def __init__(self, features: Sequence[Feature], epochs: int, batch_size: int, seed: int) -> None:
        self.features = features
        self.steps = -(-epochs * len(features) // batch_size)
        lengths = [len(feature) for feature in features]
        self._order: list[int] = []
        while len(self._order) < self.steps * batch_size:
            generator = torch.Generator().manual_seed(seed + len(self._order))
            self._order += get_length_grouped_indices(lengths, batch_size, generator=generator)
        del self._order[self.steps * batch_size :]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Feature:
        return self.features[self._order[index]]
