"""The files of a token store, and when they count as whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
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
FILES = (TOKENS, SENTENCE_ENDS, DOCUMENT_ENDS, STORE)


@dataclass(frozen=True)
class StoreInfo:
    """What `store.json` says about the files beside it; `sha256` has the digest of each."""

    fingerprint: str
    dtype: str
    max_sentence_length: int
    documents: int
    sentences: int
    tokens: int
    sha256: dict[str, str]
    format: int = FORMAT

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        ends = np.dtype(np.int64).itemsize
        tokens = self.tokens * np.dtype(self.dtype).itemsize
        return {TOKENS: tokens, SENTENCE_ENDS: self.sentences * ends, DOCUMENT_ENDS: self.documents * ends}

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
        file = directory / name
        actual = file.stat().st_size if file.exists() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise UserError(f"{file} {state}; {remedy}")
    return info


def _is_possible(info: StoreInfo) -> bool:
    """Whether the fields are of their types, and no number is below 1."""
    numbers = (info.max_sentence_length, info.documents, info.sentences, info.tokens)
    if not all(type(number) is int and number > 0 for number in numbers):
        return False
    if not isinstance(info.fingerprint, str) or info.dtype not in DTYPES or not isinstance(info.sha256, dict):
        return False
    return info.sha256.keys() == info.sizes.keys()


def has_its_bytes(directory: Path, info: StoreInfo, digests: Path | None) -> bool:
    """Whether every byte of a store's files is what was written; `digests` is the cache of `file_digest`."""
    return all(file_digest(directory / name, digests) == digest for name, digest in info.sha256.items())
