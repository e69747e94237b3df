"""From text files to what training reads: vocabulary, atlas, tokenizer, token store, samples."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glyphcrm.atlas_sources import frequent_characters, look_alikes_note, with_input_only
from glyphcrm.data.demo_corpus import corpus_path, demo_documents
from glyphcrm.data.excluded_characters import read_characters, without
from glyphcrm.data.masking import label_ids
from glyphcrm.data.pretraining import PretrainingStream, SpecialIds
from glyphcrm.data.sentence_pairs import PAIR_SPECIALS, SentencePairs, split_documents
from glyphcrm.data.text_files import expand, iter_documents
from glyphcrm.data.token_store import TokenStore
from glyphcrm.errors import UserError
from glyphcrm.files import file_digest
from glyphcrm.glyphs.atlas import GlyphAtlas, check_fonts_draw, tokens_digest
from glyphcrm.glyphs.fonts import font_chain, open_font, split_spec
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS, VOCABULARY_FILE, write_vocabulary
from glyphcrm.training.run_directory import DATA_DIRECTORY, read_json, write_json

ATLAS_FILE = "atlas.safetensors"
VOCABULARY_RECORD = "vocabulary.json"
STORE_DIRECTORY = "tokens"
DIGESTS_FILE = "digests.json"
DIGEST = "sha256:"


def data_directory(options: PretrainOptions) -> Path:
    """Return where vocabulary, atlas and tokenised text of a run are kept."""
    return Path(options.data_dir) if options.data_dir else options.run_dir / DATA_DIRECTORY


class Text:
    """The text of a run: the files of --data, or the demo corpus, without the excluded characters' sentences."""

    def __init__(self, options: PretrainOptions) -> None:
        self._files = expand(options.data) if options.data else None
        self._column = options.text_column
        excluded = options.exclude_characters
        self._excluded = read_characters(Path(excluded)) if excluded else frozenset()
        self._digests = data_directory(options) / DIGESTS_FILE

    def documents(self) -> Iterator[list[str]]:
        """Yield the documents, lists of paragraphs."""
        documents = demo_documents() if self._files is None else iter_documents(self._files, text_column=self._column)
        yield from without(documents, self._excluded) if self._excluded else documents

    def fingerprint(self) -> str:
        """Return what changes when the text does: the content of every file, their names, the column, exclusions."""
        files = [corpus_path()] if self._files is None else self._files
        contents = [(file.name, file_digest(file, self._digests)) for file in files]
        key = json.dumps([self._column, sorted(self._excluded), contents])
        return DIGEST + hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Everything that training reads."""

    tokenizer: GlyphCRMTokenizer
    vocabulary_size: int
    store: TokenStore
    train: PretrainingStream
    validation: PretrainingStream
    held_out: SentencePairs

    def label_counts(self) -> npt.NDArray[np.int64]:
        """Return how often each character of the text stands there as the model predicts it: (vocabulary_size,).

        Characters that can only be read count as [UNK].
        """
        counts = np.zeros(self.vocabulary_size, np.int64)
        readable = self.tokenizer.vocab_size
        labels = label_ids(np.arange(readable), self.vocabulary_size, self.tokenizer.unk_token_id)
        np.add.at(counts, labels, self.store.token_counts(readable))
        return counts

    def unigram_entropy(self) -> float:
        """Return the entropy of the text's characters, in nats: the best loss of what does not look at the context."""
        counts = self.label_counts()
        probabilities = counts[counts > 0] / counts.sum()
        return float(-(probabilities * np.log(probabilities)).sum())


def prepare_vocabulary(text: Text, options: PretrainOptions, directory: Path) -> None:
    """Write vocabulary and atlas of the text into `directory`, unless they are there.

    Raises:
        UserError: those that are there are of another text or of other settings; no font draws the text.
    """
    settings = {
        "text": text.fingerprint(),
        "vocabulary_size": options.vocabulary_size,
        "font": [[font, file_digest(split_spec(font)[0], directory / DIGESTS_FILE)] for font in options.font],
        "input_only": options.input_only,
    }
    if os.path.exists(directory / VOCABULARY_RECORD):  # unlike Path.exists it does not raise
        record = _read_record(directory)
        found = record["settings"]
        if not str(found.get("text")).startswith(DIGEST) or not record["sha256"]:
            raise UserError(
                f"{directory} was made by an older version, which did not look at all bytes; "
                "delete it, or give another --data-dir"
            )
        if differing := [name for name in settings if settings[name] != found.get(name)]:
            raise UserError(
                f"{directory} holds the vocabulary of another run ({', '.join(differing)} differ); "
                "give the same text, fonts and settings, or another --data-dir"
            )
        return
    try:
        _write_vocabulary(text, options, directory, settings)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be written in: {error.strerror or error}; make room, or give another --data-dir"
        ) from None


def _write_vocabulary(text: Text, options: PretrainOptions, directory: Path, settings: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    paragraphs = (paragraph for document in text.documents() for paragraph in document)
    counted = tqdm(paragraphs, "counting characters", unit=" paragraphs")
    fonts = [open_font(font) for font in options.font]
    chain = font_chain(fonts)
    vocabulary = frequent_characters(counted, "the text", chain, options.vocabulary_size)
    atlas = with_input_only(vocabulary, chain) if options.input_only else vocabulary
    check_fonts_draw(fonts, atlas)
    if note := look_alikes_note(atlas):
        print(note)
    atlas.save(directory / ATLAS_FILE)
    write_vocabulary(atlas.tokens, directory / VOCABULARY_FILE)
    # Written last: it says that the others are whole.
    record = {"size": len(vocabulary), "sha256": tokens_digest(vocabulary.tokens), "settings": settings}
    write_json(directory / VOCABULARY_RECORD, record)


def read_prepared(directory: Path) -> tuple[GlyphAtlas, GlyphCRMTokenizer, int]:
    """Return what `prepare_vocabulary` wrote: the atlas, its tokenizer, and how many of its rows can be predicted.

    Raises `UserError` if the files do not belong together.
    """
    record = _read_record(directory)
    atlas = GlyphAtlas.load(directory / ATLAS_FILE)
    tokenizer = GlyphCRMTokenizer(directory / VOCABULARY_FILE)
    size: int = record["size"]
    if tokenizer.tokens != atlas.tokens or tokens_digest(atlas.tokens[:size]) != record["sha256"]:
        raise UserError(
            f"{directory}: {ATLAS_FILE}, {VOCABULARY_FILE} and {VOCABULARY_RECORD} do not belong together; "
            "delete it and repeat the command"
        )
    return atlas, tokenizer, size


def _read_record(directory: Path) -> dict[str, Any]:
    path = directory / VOCABULARY_RECORD
    try:
        record = read_json(path)
        size, digest, settings = record["size"], record.get("sha256", ""), record["settings"]
        if type(size) is int and isinstance(digest, str) and isinstance(settings, dict):
            return {"size": size, "sha256": digest, "settings": settings}
        reason = "not its fields"
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        reason = type(error).__name__
    raise UserError(f"{path}: damaged ({reason}); delete {directory} and repeat the command")


def tokenized(text: Text, tokenizer: GlyphCRMTokenizer, directory: Path, max_length: int, progress: bool) -> TokenStore:
    """Open the tokenised text in `directory`, made if it is not there, of another text, or damaged."""
    longest_sentence = (max_length - PAIR_SPECIALS) // 2
    key = json.dumps([text.fingerprint(), tokenizer.tokens, longest_sentence])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    store = directory / STORE_DIRECTORY
    if TokenStore.matches(store, fingerprint, directory / DIGESTS_FILE):
        return TokenStore.open(store, fingerprint)
    return TokenStore.write(
        store,
        text.documents(),
        tokenizer.encode_characters,
        max_sentence_characters=longest_sentence,
        fingerprint=fingerprint,
        progress=progress,
    )


def build_corpus(
    store: TokenStore, tokenizer: GlyphCRMTokenizer, vocabulary_size: int, options: PretrainOptions
) -> Corpus:
    """Split the store into training and validation documents and make the samples of the run."""
    recipe, seed = options.recipe, options.seed
    train, held_out = (
        SentencePairs(store, documents, max_length=recipe.max_length, seed=seed)
        for documents in split_documents(store.document_count, options.held_out)
    )
    special = SpecialIds(*(tokenizer.get_vocab()[token] for token in SPECIAL_TOKENS))

    def stream(pairs: SentencePairs, length: int) -> PretrainingStream:
        return PretrainingStream(pairs, length, special, vocabulary_size, seed, options.mask_probability)

    samples = stream(train, recipe.steps * recipe.batch_size)
    validation = stream(held_out, min(options.eval_samples, len(held_out)))
    return Corpus(tokenizer, vocabulary_size, store, samples, validation, held_out)
