"""The samples of pre-training, addressed by their position in the whole run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from glyphcrm.data.masking import MASK_PROBABILITY, mask_tokens
from glyphcrm.data.permutation import visit
from glyphcrm.data.random_streams import Purpose, random_stream
from glyphcrm.data.sentence_pairs import SentencePairs
from glyphcrm.tokens import CLS_ID, FIRST_ORDINARY_ID, SEP_ID

IS_NEXT = 0  # BERT's convention
NOT_NEXT = 1

Sample = dict[str, npt.NDArray[np.int64]]


def masked_pair(
    a: npt.NDArray[np.integer],
    b: npt.NDArray[np.integer],
    is_next: bool,
    vocabulary_size: int,
    rng: np.random.Generator,
    mask_probability: float = MASK_PROBABILITY,
) -> Sample:
    """Return the sample of a pair of token sequences: [CLS] a [SEP] b [SEP], masked, of L tokens, without padding.

    `input_ids`, `labels` (-100 where nothing is predicted) and `token_type_ids` (1 for b and the [SEP] after it)
    are (L,), `next_sentence_label` is () (0: b follows a, 1: it does not); all int64.
    """
    ids = np.concatenate([[CLS_ID], a, [SEP_ID], b, [SEP_ID]])
    input_ids, labels = mask_tokens(ids, ids >= FIRST_ORDINARY_ID, rng, vocabulary_size, mask_probability)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "token_type_ids": (np.arange(len(ids)) >= len(a) + 2).astype(np.int64),
        "next_sentence_label": np.array(IS_NEXT if is_next else NOT_NEXT, np.int64),
    }


class PretrainingStream(Dataset[Sample]):
    """Map-style data set over the positions 0 ... length - 1 of a training run.

    Each pass over the pairs (epoch) takes them in its own pseudo-random order, and splits and
    masks them anew. A sample depends on its position and the seeds alone: the number of workers
    or processes, and an interruption, change nothing.
    """

    def __init__(
        self,
        pairs: SentencePairs,
        length: int,
        vocabulary_size: int,
        seed: int,
        mask_probability: float = MASK_PROBABILITY,
    ) -> None:
        """Make `length` samples, which may exceed len(pairs); ids from `vocabulary_size` on have the label [UNK].

        Raises `ValueError` for a number that is out of range.
        """
        if length < 1:
            raise ValueError(f"length is {length}, and must be at least 1")
        if not 0 < mask_probability <= 1:
            raise ValueError(f"mask_probability is {mask_probability}, and must be within (0, 1]")
        if vocabulary_size <= FIRST_ORDINARY_ID:
            raise ValueError(f"a vocabulary of {vocabulary_size} holds no ordinary token")
        self.pairs = pairs
        self.length = length
        self.vocabulary_size = vocabulary_size
        self.seed = seed
        self.mask_probability = mask_probability

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Sample:
        """Return a sample, see `masked_pair`."""
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} of a run of {self.length} samples")
        epoch, k = divmod(position, len(self.pairs))
        index = visit(self.seed, epoch, k, len(self.pairs))
        rng = random_stream(self.seed, epoch, index, Purpose.MASK)
        return masked_pair(*self.pairs.pair(epoch, index), self.vocabulary_size, rng, self.mask_probability)
