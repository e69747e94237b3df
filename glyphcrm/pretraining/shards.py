"""What `glyphcrm tokenize` does: the text of a run as a whole, or in parts that any machine can make.

Each part has the whole files of its run of the text, in DIR/parts/I-of-N: `counted.json` says which, of which content
and settings, and how often each character stands there; `tokens` is its store. Once all parts are counted there is a
vocabulary, and once all are tokenised DIR/tokens makes them one store, whose documents have the order of the text.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glyphcrm.data.store_format import PARTS, part_name, read_info
from glyphcrm.data.store_writer import replacing, write_files
from glyphcrm.data.text_files import source_size
from glyphcrm.data.token_store import TokenStore
from glyphcrm.errors import UserError, listed
from glyphcrm.glyphs.atlas import tokens_digest
from glyphcrm.pretraining.corpus import (
    DIGEST,
    DIGESTS_FILE,
    STORE_DIRECTORY,
    Text,
    longest_sentence,
    make_vocabulary,
    prepare_vocabulary,
    read_prepared,
    store_fingerprint,
    tokenized,
    vocabulary_settings,
)
from glyphcrm.pretraining.options import RECIPES, TextOptions
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.training.options import check_ranges, option
from glyphcrm.training.run_directory import locked, read_json, write_json

RECORD = "counted.json"


@dataclass
class TokenizeOptions(TextOptions):
    """Make text into what `glyphcrm pretrain --data-dir DIR` reads, on one machine or, in parts, on many."""

    output_dir: str = option("runs/text", "where vocabulary, atlas and tokens go: the --data-dir of pretrain")
    shard: str | None = option(
        None,
        "make part I of N, as 3/8; the first is 1. Run the command for every part, then again for every part: the "
        "first time counts characters, the second tokenises. With --init once is enough",
    )
    workers: int | None = option(None, "processes that count and tokenise; default: one for each core")
    init: str | None = option(None, "tokenise for this GlyphCRM checkpoint, which pretrain is given as its --init")
    data_dir: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.data_dir = self.output_dir
        self.check_init(self.init)
        self.max_length = self.max_length or RECIPES[self.preset].max_length
        check_ranges(
            asdict(self),
            {
                (8, math.inf): ("max_length",),
                (0, 1024): ("workers",),
                (len(SPECIAL_TOKENS) + 1, math.inf): ("vocabulary_size",),
            },
        )
        number, _, of = (self.shard or "1/1").partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of) <= 100_000):
            raise UserError(f"--shard {self.shard}: give the part and the number of parts, as 1/8; the last is 8/8")
        self.part = int(number), int(of)

    @property
    def longest(self) -> int:
        """The most characters of a sentence."""
        assert self.max_length is not None
        return longest_sentence(self.max_length)


def tokenize_text(options: TokenizeOptions) -> str:
    """Make the text, or the part that `options` name, into tokens; return what has been done and what is left to do.

    What is there, whole and of the same text and settings, is not made again.

    Raises:
        UserError: another process is making the same; what is there is of other text or settings, or damaged.
    """
    directory = options.run_dir
    text = Text(options, options.workers)
    tokenizer = GlyphCRMTokenizer.from_pretrained(options.init) if options.init else None
    if options.part[1] > 1:
        waiting = _tokenize_part(text, tokenizer, options)
        if waiting is not None:
            return waiting
    else:
        with locked(directory, wait=True):
            if tokenizer is None:
                prepare_vocabulary(text, options, directory)
                tokenizer = read_prepared(directory)[1]
            assert options.max_length is not None
            tokenized(text, tokenizer, directory, options.max_length, progress=True)
    store = TokenStore.open(directory / STORE_DIRECTORY)
    return (
        f"{directory}: {store.document_count:,} documents, {store.sentence_count:,} sentences, "
        f"{store.token_count:,} characters; train on them with --data-dir {directory}"
    )


def _tokenize_part(text: Text, tokenizer: GlyphCRMTokenizer | None, options: TokenizeOptions) -> str | None:
    """Do what can be done for a part; return what is missing for the whole, or None."""
    number, of = options.part
    directory = options.run_dir
    places = [directory / PARTS / part_name(i, of) for i in range(1, of + 1)]
    place = places[number - 1]
    there = os.listdir(directory / PARTS) if (directory / PARTS).exists() else ()
    if others := sorted(set(there) - {place.name for place in places}):
        raise UserError(
            f"{directory / PARTS / others[0]} is no part of {of}; repeat the command of all parts with one number of "
            "them, delete it, or give another --output-dir"
        )
    part = text.part(number, of)
    with locked(place):
        contents = part.contents(place / DIGESTS_FILE)
        settings = _settings(text, tokenizer, options, place / DIGESTS_FILE)
        if not (place / RECORD).exists():
            counts = part.character_counts() if tokenizer is None else {}
            write_json(place / RECORD, {"settings": settings, "contents": contents, "counts": counts})
        records = [_read_record(other, settings) for other in places]
        own = records[number - 1]
        assert own is not None
        if changed := [name for name, digest in contents if [name, digest] not in own["contents"]]:
            raise UserError(f"{place} was made before {listed(changed)} changed; delete it and repeat the command")
        counted = [record for record in records if record is not None]
        if tokenizer is None:
            if len(counted) < of:
                missing = [i for i, record in enumerate(records, 1) if record is None]
                return (
                    f"part {number} of {of} is counted, {_numbered(missing)} not yet; when all are, repeat the "
                    "commands of all parts"
                )
            tokenizer = _shared_vocabulary(text, counted, options)
        fingerprints = [_part_fingerprint(text, record, tokenizer, options.longest) for record in records]
        mine = fingerprints[number - 1]
        if not TokenStore.matches(place / STORE_DIRECTORY, mine, place / DIGESTS_FILE):
            arguments = (part.all_documents(), tokenizer.encode_characters, options.longest, mine, True)
            with replacing(place / STORE_DIRECTORY) as building:
                write_files(building, *arguments, text.excluded, text.workers)
    if missing := [i for i in range(1, of + 1) if not _is_whole(places[i - 1] / STORE_DIRECTORY, fingerprints[i - 1])]:
        return f"part {number} of {of} is tokenised, {_numbered(missing)} not yet: repeat the command for those"
    whole = text.fingerprint([entry for record in counted for entry in record["contents"]])
    fingerprint = store_fingerprint(whole, tokenizer, options.longest)
    with locked(directory, wait=True):
        store = directory / STORE_DIRECTORY
        if not TokenStore.matches(store, fingerprint, directory / DIGESTS_FILE):
            TokenStore.join(store, [other / STORE_DIRECTORY for other in places], fingerprint)
        text.record(whole)
    return None


def _shared_vocabulary(text: Text, records: list[dict[str, Any]], options: TokenizeOptions) -> GlyphCRMTokenizer:
    """Return the tokenizer of what all parts have counted, made if it is not there."""
    fingerprint = text.fingerprint([entry for record in records for entry in record["contents"]])

    def counts() -> Counter[str]:
        return sum((Counter(record["counts"]) for record in records), Counter[str]())

    with locked(options.run_dir, wait=True):
        make_vocabulary(fingerprint, counts, options, options.run_dir)
        return read_prepared(options.run_dir)[1]


def _settings(
    text: Text, tokenizer: GlyphCRMTokenizer | None, options: TokenizeOptions, digests: Path
) -> dict[str, Any]:
    """Return what must be the same for all parts; the files are told by their names and sizes."""
    files = [[source.name, source_size(source)] for source in text.known_sources()]
    return {
        "data": DIGEST + hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "text_column": options.text_column,
        "exclude_characters": "".join(sorted(text.excluded)),
        "max_length": options.max_length,
        "init": tokens_digest(tokenizer.tokens) if tokenizer else None,
        **vocabulary_settings(options, digests),
    }


def _read_record(place: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a part has counted; None if it has not.

    Raises `UserError`: the record is damaged, or of other settings.
    """
    try:
        record = read_json(place / RECORD)
        found, contents, counts = record["settings"], record["contents"], record["counts"]
        is_right = all(isinstance(x, t) for x, t in ((found, dict), (contents, list), (counts, dict)))
        is_right = is_right and all(type(count) is int and count > 0 for count in counts.values())
        is_right = is_right and all(isinstance(x, list) and len(x) == 2 for x in contents)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        is_right = False
    if not is_right:
        raise UserError(f"{place / RECORD}: damaged; delete it and repeat the command of this part")
    if differing := [f"--{n.replace('_', '-')}" for n in settings if settings[n] != found.get(n)]:
        raise UserError(
            f"{place} was made with other {', '.join(differing)}; give the same, or delete it and repeat its command"
        )
    return {"contents": contents, "counts": counts}


def _part_fingerprint(text: Text, record: dict[str, Any] | None, tokenizer: GlyphCRMTokenizer, longest: int) -> str:
    contents = record["contents"] if record is not None else None
    return store_fingerprint([text.column, sorted(text.excluded), contents], tokenizer, longest)


def _is_whole(store: Path, fingerprint: str) -> bool:
    try:
        return read_info(store).fingerprint == fingerprint
    except UserError:
        return False


def _numbered(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
