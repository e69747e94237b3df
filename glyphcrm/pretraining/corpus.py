"""From text files to what training reads: vocabulary, atlas, tokenizer, token store, samples."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glyphcrm.atlas_sources import frequent_characters, look_alikes_note, with_input_only
from glyphcrm.data.demo_corpus import corpus_path, demo_documents
from glyphcrm.data.excluded_characters import read_characters, without
from glyphcrm.data.masking import label_ids
from glyphcrm.data.pretraining import PretrainingStream
from glyphcrm.data.sentence_pairs import PAIR_SPECIALS, SentencePairs, check_document_count, split_documents
from glyphcrm.data.store_format import unfinished_parts
from glyphcrm.data.store_writer import blocks
from glyphcrm.data.text_files import TextSource, expand, has_columns, iter_documents, source_digest, source_size
from glyphcrm.data.token_store import TokenStore
from glyphcrm.data.worker_processes import cores, ordered_map
from glyphcrm.errors import UserError
from glyphcrm.files import file_digest
from glyphcrm.glyphs.atlas import GlyphAtlas, bitmaps_digest, check_fonts_draw, tokens_digest
from glyphcrm.glyphs.font_file import Font
from glyphcrm.glyphs.fonts import font_chain, open_font
from glyphcrm.pretraining.options import TEXT_COLUMN, PretrainOptions, TextOptions
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import VOCABULARY_FILE, write_vocabulary
from glyphcrm.training.run_directory import DATA_DIRECTORY, read_json, write_json
from glyphcrm.vocabulary import count_characters

ATLAS_FILE = "atlas.safetensors"
TEXT_RECORD = "text.json"
VOCABULARY_RECORD = "vocabulary.json"
STORE_DIRECTORY = "tokens"
DIGESTS_FILE = "digests.json"
DIGEST = "sha256:"


def data_directory(options: TextOptions) -> Path:
    """Return where vocabulary, atlas and tokenised text of a run are kept."""
    return Path(options.data_dir) if options.data_dir else options.run_dir / DATA_DIRECTORY


class Text:
    """The text of a run: that of --data, or the demo corpus, without the excluded characters' sentences.

    Without --data it is what --data-dir was made of, if that is there: then only its fingerprint is known.

    Attributes:
        sources: where the documents are, in order; None if it is not known.
        excluded: characters whose sentences are left out.
        workers: how many processes count and tokenise.
    """

    def __init__(self, options: TextOptions, workers: int | None = None) -> None:
        """Find the text; the default of `workers` is a process for each core.

        Raises `UserError`: there is no such text, none of it has columns though one is named, or what --data-dir has
        was made of less or more of it.
        """
        self.workers = cores() if workers is None else workers
        self.column = options.text_column
        excluded = options.exclude_characters
        self.excluded = read_characters(Path(excluded)) if excluded else frozenset[str]()
        self._directory = data_directory(options)
        self._is_demo = False
        self._is_part = False
        self.sources: Sequence[TextSource] | None = None
        if options.data:
            self.sources = expand(options.data)
        elif not options.data_dir or not self._is_known():
            self._is_demo, self.sources = True, [corpus_path()]
        if self.column != TEXT_COLUMN and self.sources and not any(map(has_columns, self.sources)):
            raise UserError(f"--text-column {self.column}: no text that is given has columns or keys; leave it out")

    def _is_known(self) -> bool:
        path = self._directory / TEXT_RECORD
        if not os.path.exists(path):
            if to_do := unfinished_parts(self._directory):
                raise UserError(to_do)
            return False
        try:
            record = read_json(path)
            self._fingerprint, excluded = str(record["fingerprint"]), str(record["exclude_characters"])
            if record["demo"]:
                return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({type(error).__name__}); give --data again, and delete it") from None
        if excluded != "".join(sorted(self.excluded)):
            raise UserError(
                f"{self._directory} was made with other --exclude-characters; give the same, or another directory"
            )
        return True

    def part(self, number: int, of: int) -> Text:
        """Return part `number` of `of`, the first is 1: a run of whole files of about the same size as the others.

        Raises `UserError` if there are fewer files than parts.
        """
        sources = self.known_sources()
        if len(sources) < of:
            raise UserError(
                f"--shard {number}/{of}: a part has one file or more, and the text has {len(sources)}; "
                "give as many parts at most, or the text in more files"
            )
        part = copy.copy(self)
        bounds = split_evenly([source_size(source) for source in sources], of)
        part.sources, part._is_part = sources[bounds[number - 1] : bounds[number]], True
        return part

    def known_sources(self) -> Sequence[TextSource]:
        """Return `sources`; raise `UserError` if they are not known."""
        if self.sources is None:
            raise UserError(
                f"{self._directory} lacks tokenised text for these settings, or it is damaged; give --data again"
            )
        return self.sources

    def documents(self) -> Iterator[list[str]]:
        """Yield the documents, lists of paragraphs, without what is excluded."""
        yield from without(self.all_documents(), self.excluded) if self.excluded else self.all_documents()

    def all_documents(self) -> Iterator[list[str]]:
        """Yield the documents, lists of paragraphs, with what is excluded."""
        sources = self.known_sources()
        if self._is_demo:
            return demo_documents()
        return iter_documents(sources, text_column=self.column, may_be_blank=self._is_part)

    def character_counts(self) -> Counter[str]:
        """Return how often each character stands in the text, normalised and without what is excluded.

        Raises `UserError` for a text that has too few documents, before anything is drawn and tokenised for it.
        """
        counts: Counter[str] = Counter()
        documents = 0
        count = partial(_counted, excluded=self.excluded)
        with tqdm(desc="Counting characters", unit=" characters", unit_scale=True) as bar:
            for of_block, documents_of_block in ordered_map(count, blocks(self.all_documents()), self.workers):
                counts.update(of_block)
                documents += documents_of_block
                bar.update(of_block.total())
        if not self._is_part:
            check_document_count(documents)
        return counts

    def contents(self, digests: Path) -> list[list[str]]:
        """Return name and digest of every source; `digests` is a cache of them."""
        return [[source.name, source_digest(source, digests)] for source in self.known_sources()]

    def fingerprint(self, contents: list[list[str]] | None = None) -> str:
        """Return what changes when the text does: the content of every file, their names, the column, exclusions.

        `contents`, those of all parts one after the other, give the fingerprint of the whole.
        """
        if self.sources is None:
            return self._fingerprint
        contents = self.contents(self._directory / DIGESTS_FILE) if contents is None else contents
        key = json.dumps([self.column, sorted(self.excluded), contents])
        return DIGEST + hashlib.sha256(key.encode()).hexdigest()

    def record(self, fingerprint: str) -> None:
        """Let a run that is given no text but this data directory know which it is."""
        path = self._directory / TEXT_RECORD
        record = {
            "fingerprint": fingerprint,
            "exclude_characters": "".join(sorted(self.excluded)),
            "demo": self._is_demo,
        }
        with suppress(OSError, ValueError):
            if read_json(path) == record:
                return
        write_json(path, record)


def _counted(block: list[list[str]], excluded: frozenset[str]) -> tuple[Counter[str], int]:
    documents = list(without(block, excluded)) if excluded else block
    return Counter(count_characters(paragraph for document in documents for paragraph in document)), len(documents)


def split_evenly(sizes: Sequence[int], parts: int) -> list[int]:
    """Return where `parts` runs of files begin, and the end of the last: as even as whole files allow, none empty."""
    before = list(accumulate(sizes, initial=0))
    bounds = [0]
    for i in range(1, parts):
        wanted = before[-1] * i / parts
        at = bisect_left(before, wanted)
        at -= at > 0 and wanted - before[at - 1] < before[at] - wanted  # the nearer one
        bounds.append(min(max(at, bounds[-1] + 1), len(sizes) - (parts - i)))
    return [*bounds, len(sizes)]


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
        labels = label_ids(np.arange(readable), self.vocabulary_size)
        np.add.at(counts, labels, self.store.token_counts(readable))
        return counts

    def unigram_entropy(self) -> float:
        """Return the entropy of the text's characters, in nats: the best loss of what does not look at the context."""
        counts = self.label_counts()
        probabilities = counts[counts > 0] / counts.sum()
        return float(-(probabilities * np.log(probabilities)).sum())


def vocabulary_settings(options: TextOptions, digests: Path) -> dict[str, Any]:
    """Return what decides a vocabulary and its atlas, apart from the text; `digests` is a cache of the fonts'.

    Raises `UserError` for a font that cannot be drawn with: before characters are counted, which may take hours.
    """
    return {
        "vocabulary_size": options.vocabulary_size,
        "font": [[font, file_digest(open_font(font).path, digests)] for font in options.font],
        "input_only": options.input_only,
    }


def prepare_vocabulary(text: Text, options: TextOptions, directory: Path) -> None:
    """Write vocabulary and atlas of the text into `directory`, unless they are there; errors: `make_vocabulary`."""
    make_vocabulary(text.fingerprint(), text.character_counts, options, directory)


def make_vocabulary(
    fingerprint: str, counts: Callable[[], Mapping[str, int]], options: TextOptions, directory: Path
) -> None:
    """Write the vocabulary and atlas of counted characters into `directory`, unless they are there.

    Raises:
        UserError: those that are there are of another text or of other settings; no font draws the text.
    """
    settings = {"text": fingerprint, **vocabulary_settings(options, directory / DIGESTS_FILE)}
    if os.path.exists(directory / VOCABULARY_RECORD):  # unlike Path.exists it does not raise
        record = _read_record(directory)
        found = record["settings"]
        if not str(found.get("text")).startswith(DIGEST) or not record["sha256"]:
            raise UserError(
                f"{directory} was made by an older version, which did not look at all bytes; "
                "delete it, or give another directory"
            )
        if differing := [name for name in settings if settings[name] != found.get(name)]:
            raise UserError(
                f"{directory} holds the vocabulary of another run ({', '.join(differing)} differ); "
                "give the same text, fonts and settings, or another directory"
            )
        return
    try:
        _write_vocabulary(counts(), options, directory, settings)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be written in: {error.strerror or error}; make room, or give another directory"
        ) from None


def _write_vocabulary(
    counts: Mapping[str, int], options: TextOptions, directory: Path, settings: dict[str, Any]
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    fonts = [open_font(font) for font in options.font]
    chain = font_chain(fonts)
    vocabulary = frequent_characters(counts, "the text", chain, options.vocabulary_size)
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


def in_font(atlas: GlyphAtlas, font: Font, directory: Path, progress: bool) -> GlyphAtlas:
    """Return `atlas.redrawn(font)`; pictures once drawn are kept in `directory`, if it can be written in."""
    origin = file_digest(font.path), font.index, font.axes, tokens_digest(atlas.tokens), bitmaps_digest(atlas.bitmaps)
    path = directory / f"font-{hashlib.sha256(json.dumps(origin).encode()).hexdigest()}.safetensors"
    with suppress(UserError):  # none yet, or damaged
        return GlyphAtlas.load(path)
    drawn = atlas.redrawn(font, progress=progress)
    with suppress(UserError):
        drawn.save(path)
    return drawn


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
    longest = longest_sentence(max_length)
    text_fingerprint = text.fingerprint()
    fingerprint = store_fingerprint(text_fingerprint, tokenizer, longest)
    store = directory / STORE_DIRECTORY
    if text.sources is None:
        TokenStore.check(store, fingerprint, directory / DIGESTS_FILE)
        return TokenStore.open(store)
    if not TokenStore.matches(store, fingerprint, directory / DIGESTS_FILE):
        TokenStore.write(
            store,
            text.all_documents(),
            tokenizer.encode_characters,
            max_sentence_characters=longest,
            fingerprint=fingerprint,
            progress=progress,
            excluded=text.excluded,
            workers=text.workers,
        )
    text.record(text_fingerprint)
    return TokenStore.open(store, fingerprint)


def longest_sentence(max_length: int) -> int:
    """Return the most characters of a sentence, so that two and the special tokens fit `max_length`."""
    return (max_length - PAIR_SPECIALS) // 2


def store_fingerprint(text: object, tokenizer: GlyphCRMTokenizer, longest: int) -> str:
    """Return what a store of this text must have been made from."""
    return hashlib.sha256(json.dumps([text, tokenizer.tokens, longest]).encode()).hexdigest()


def build_corpus(
    store: TokenStore, tokenizer: GlyphCRMTokenizer, vocabulary_size: int, options: PretrainOptions
) -> Corpus:
    """Split the store into training and validation documents and make the samples of the run."""
    recipe, seed = options.recipe, options.seed
    train, held_out = (
        SentencePairs(store, documents, max_length=recipe.max_length, seed=seed)
        for documents in split_documents(store.document_count, options.held_out)
    )

    def stream(pairs: SentencePairs, length: int) -> PretrainingStream:
        return PretrainingStream(pairs, length, vocabulary_size, seed, options.mask_probability)

    samples = stream(train, recipe.steps * recipe.batch_size)
    validation = stream(held_out, min(options.eval_samples, len(held_out)))
    return Corpus(tokenizer, vocabulary_size, store, samples, validation, held_out)
