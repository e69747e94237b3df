"""The files of a token store, and when they count as whole.

A store has its tokens in a file of its own, or is made of parts: then they stay in those of the parts, the stores
``parts/I-of-N/tokens`` beside it, and only where sentences and documents end is written anew.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from glyphcrm.errors import UserError, shown
from glyphcrm.files import file_digest

FORMAT = 2
TOKENS = "tokens.bin"
SENTENCE_ENDS = "sentence_ends.bin"
DOCUMENT_ENDS = "document_ends.bin"
STORE = "store.json"
DTYPES = ("uint16", "uint32")  # of the tokens; where sentences and documents end is int64
PARTS = "parts"
MOST_PARTS = 100_000
_PART = re.compile("[0-9]{1,6}-of-([0-9]{1,6})")
FILES = (TOKENS, SENTENCE_ENDS, DOCUMENT_ENDS, STORE)


def part_name(number: int, of: int) -> str:
    """Return the name of the directory of a part; the first is number 1."""
    return f"{number}-of-{of}"


def unfinished_parts(directory: Path) -> str | None:
    """Return what is to be done with the parts of a store in `directory`; None if there are none."""
    places = directory / PARTS
    names = [_PART.fullmatch(name) for name in (os.listdir(places) if places.is_dir() else ())]
    of = max((int(name[1]) for name in names if name), default=0)
    if not of:
        return None
    missing = [
        i for i in range(1, min(of, MOST_PARTS) + 1) if not (places / part_name(i, of) / "tokens" / STORE).exists()
    ]
    which = f"part {missing[0]} of {of} is not tokenised" if missing else "its parts are not joined"
    return f"{directory}: {which}; repeat glyphcrm tokenize with --shard {(missing or [1])[0]}/{of}"


@dataclass(frozen=True)
class StoreInfo:
    """What `store.json` says about the files beside it; `sha256` has the digest of each.

    `parts` are the data type and the number of tokens of each part, if it is made of parts.
    """

    fingerprint: str
    dtype: str
    max_sentence_length: int
    documents: int
    sentences: int
    tokens: int
    sha256: dict[str, str]
    parts: list[tuple[str, int]] = field(default_factory=list)
    format: int = FORMAT

    @property
    def token_files(self) -> dict[str, tuple[str, int]]:
        """Name, data type and number of tokens of the files with tokens."""
        if not self.parts:
            return {TOKENS: (self.dtype, self.tokens)}
        names = (part_name(i + 1, len(self.parts)) for i in range(len(self.parts)))
        return {f"../{PARTS}/{name}/tokens/{TOKENS}": (d, n) for name, (d, n) in zip(names, self.parts, strict=True)}

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        ends = np.dtype(np.int64).itemsize
        tokens = {name: count * np.dtype(dtype).itemsize for name, (dtype, count) in self.token_files.items()}
        return {**tokens, SENTENCE_ENDS: self.sentences * ends, DOCUMENT_ENDS: self.documents * ends}

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_info(directory: Path) -> StoreInfo:
    """Read `store.json`; raise `UserError` if the files beside it are not those of a whole store of this format."""
    path = directory / STORE
    remedy = "delete the directory and tokenise again"
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{directory} holds no token store ({STORE} is missing)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from None
    found = fields.get("format") if isinstance(fields, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: format {shown(str(found))} is unknown, this version reads {FORMAT}; {remedy}")
    try:
        info = StoreInfo(**fields)
    except TypeError:
        info = None
    if info is None or not _is_possible(info):
        raise UserError(f"{path}: its fields are not those of a token store; {remedy}")
    for name, size in info.sizes.items():
        file = Path(os.path.normpath(directory / name))
        actual = file.stat().st_size if file.exists() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise UserError(f"{file} {state}; {remedy}")
    return info


def _is_possible(info: StoreInfo) -> bool:
    """Whether the fields are of their types, and no number is below 0."""
    numbers = (info.max_sentence_length, info.documents, info.sentences, info.tokens)
    if not all(type(number) is int and number >= 0 for number in numbers):
        return False
    if not isinstance(info.parts, list) or len(info.parts) > MOST_PARTS:
        return False
    for part in info.parts:
        if not isinstance(part, list) or len(part) != 2 or part[0] not in DTYPES or type(part[1]) is not int:
            return False
    if info.parts and (min(count for _, count in info.parts) < 0 or sum(n for _, n in info.parts) != info.tokens):
        return False
    if not isinstance(info.fingerprint, str) or info.dtype not in DTYPES or not isinstance(info.sha256, dict):
        return False
    return info.sha256.keys() == info.sizes.keys()


def check_bytes(directory: Path, info: StoreInfo, digests: Path | None) -> None:
    """Raise `UserError` unless every byte of a store's files is what was written.

    `digests` is the cache of `file_digest`.
    """
    for name, digest in info.sha256.items():
        file = Path(os.path.normpath(directory / name))
        if file_digest(file, digests) != digest:
            raise UserError(f"{file} is damaged (its SHA-256 is not the one in {STORE}); tokenise again")
