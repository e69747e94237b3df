"""The files of a token store, and when they count as whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from glyphcrm.errors import UserError

FORMAT = 1
TOKENS = "tokens.bin"
SENTENCE_ENDS = "sentence_ends.bin"
DOCUMENT_ENDS = "document_ends.bin"
STORE = "store.json"
FILES = (TOKENS, SENTENCE_ENDS, DOCUMENT_ENDS, STORE)


@dataclass(frozen=True)
class StoreInfo:
    """What `store.json` says about the files beside it. Sizes are in bytes."""

    fingerprint: str
    dtype: str
    max_sentence_length: int
    documents: int
    sentences: int
    tokens: int
    file_sizes: dict[str, int] = field(default_factory=dict)
    format: int = FORMAT

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
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from None
    found = fields.get("format") if isinstance(fields, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: format {found} is unknown, this version reads {FORMAT}; {remedy}")
    try:
        info = StoreInfo(**fields)
        sizes = dict(info.file_sizes)
    except (TypeError, ValueError):
        raise UserError(f"{path}: its fields are not those of a token store; {remedy}") from None
    for name, size in sizes.items():
        file = directory / name
        actual = file.stat().st_size if file.exists() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise UserError(f"{file} {state}; {remedy}")
    return info
