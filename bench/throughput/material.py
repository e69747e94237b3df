"""From text to what the models are given: atlas, batches as pre-training makes them, batches for inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from bench.throughput.sizes import Sizes
from glyphcrm.data.collator import PretrainingCollator
from glyphcrm.data.masking import mask_tokens
from glyphcrm.data.pretraining import PretrainingStream, Sample, SpecialIds
from glyphcrm.data.sentence_pairs import SPECIALS, SentencePairs
from glyphcrm.data.token_store import TokenStore
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import font_chain
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.vocabulary import SPECIAL_TOKENS, build_vocabulary, count_characters, input_only_tokens

Batch = dict[str, Tensor]
SEED = 0


class Material:
    """Everything that is made of the texts.

    Attributes:
        sizes: how much of everything.
        directory: where its files are; the atlas is ATLAS_FILE.
        documents: of the training text, lists of paragraphs.
        atlas, tokenizer: characters by frequency in the training text, then, unless the preset is for tests, every
            other Han character of the default font, so that the vocabulary is of the paper's size.
        collator: of pre-training.
    """

    ATLAS_FILE = "atlas.safetensors"

    def __init__(self, sizes: Sizes, documents: list[list[str]], texts: list[str], directory: Path) -> None:
        self.sizes, self.documents, self.directory = sizes, documents, directory
        self._texts = texts
        chain = font_chain([])
        counts = count_characters(itertools.chain(itertools.chain.from_iterable(documents), texts))
        tokens = build_vocabulary(counts, chain)
        if sizes.fill_vocabulary:
            tokens += input_only_tokens(tokens, chain)
        self.atlas = GlyphAtlas.build(tokens, chain)
        self.atlas.save(directory / self.ATLAS_FILE)
        self.tokenizer = GlyphCRMTokenizer.from_tokens(self.atlas.tokens, directory / "tokenizer")
        self.special = SpecialIds(*(tokens.index(token) for token in SPECIAL_TOKENS))
        self.vocabulary = sizes.configuration(len(tokens)).vocab_size
        self.collator = PretrainingCollator(self.special.pad)
        self._store = self.write_store("tokens")

    def write_store(self, name: str) -> TokenStore:
        """Tokenise the training text into a directory of this name."""
        return TokenStore.write(
            self.directory / name,
            self.documents,
            self.tokenizer.encode_characters,
            max_sentence_characters=(self.sizes.length - SPECIALS) // 2,
            fingerprint="throughput",
            progress=False,
        )

    def stream(self, store: TokenStore) -> PretrainingStream:
        """Return an epoch of training samples."""
        pairs = SentencePairs(store, np.arange(store.document_count), max_length=self.sizes.length, seed=SEED)
        return PretrainingStream(pairs, len(pairs), self.special, self.vocabulary, SEED)

    def real_batches(self, size: int) -> Iterator[Batch]:
        """Yield, without end, batches of `size` sequences of real lengths, as pre-training sees them."""
        stream = self.stream(self._store)
        return self._batches(size, lambda i: stream[i % len(stream)])

    def full_batches(self, size: int) -> Iterator[Batch]:
        """Yield, without end, batches of `size` sequences of exactly `sizes.length` tokens: no padding at all.

        The sequences of a batch come from all over the text, as in pre-training: neighbours would share characters.
        """
        text = self._store.sentences(0, self._store.sentence_count)
        per_sequence = self.sizes.length - SPECIALS
        starts = np.random.default_rng(SEED).permutation(len(text) // per_sequence) * per_sequence

        def sample(i: int) -> Sample:
            start = starts[i % len(starts)]
            return self._full_sample(text[start : start + per_sequence].astype(np.int64), np.random.default_rng(i))

        return self._batches(size, sample)

    def text_batches(self) -> list[Batch]:
        """Return the texts for inference, tokenised, in order, each batch padded to its longest: as a pipeline does."""
        longest = self.sizes.configuration(len(self.atlas)).max_position_embeddings
        texts = self._texts[: self.sizes.texts]
        parts = (texts[i : i + self.sizes.batch] for i in range(0, len(texts), self.sizes.batch))
        return [
            dict(self.tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt"))
            for part in parts
        ]

    def _batches(self, size: int, sample: Callable[[int], Sample]) -> Iterator[Batch]:
        for start in itertools.count(0, size):
            yield self.collator([sample(i) for i in range(start, start + size)])

    def _full_sample(self, text: np.ndarray, rng: np.random.Generator) -> Sample:
        special, middle = self.special, len(text) // 2
        ids = np.concatenate([[special.cls], text[:middle], [special.sep], text[middle:], [special.sep]])
        input_ids, labels = mask_tokens(
            ids,
            ids >= special.first_ordinary_id,
            rng,
            mask_id=special.mask,
            vocabulary_size=self.vocabulary,
            first_ordinary_id=special.first_ordinary_id,
            unk_id=special.unk,
        )
        return {
            "input_ids": input_ids,
            "labels": labels,
            "token_type_ids": (np.arange(len(ids)) >= middle + 2).astype(np.int64),
            "next_sentence_label": np.array(0, np.int64),
        }


def real_tokens(*batches: Batch) -> int:
    """Return how many tokens of the batches are not padding."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches)
