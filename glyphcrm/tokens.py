"""The tokens of a model, row by row: the special ones, which stand first, and the file that holds all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from glyphcrm.errors import UserError, listed

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Their rows in each of our vocabularies, and the first row behind them; a BERT has its own.
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)
FIRST_ORDINARY_ID = 5
VOCABULARY_FILE = "vocab.txt"
LARGEST_VOCABULARY = 1 << 24  # bytes; all of Unicode takes five million


def read_vocabulary(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read and check a ``vocab.txt``.

    Raises `UserError`: it is missing, too large, not UTF-8, does not begin with the special tokens, or repeats a token.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_VOCABULARY + 1)
        if len(content) > LARGEST_VOCABULARY:
            raise UserError(f"{path}: larger than {LARGEST_VOCABULARY >> 20} MiB; give a file of one token a line")
        # Only \n ends a line: other line separators of Unicode may be tokens.
        tokens = tuple(content.decode("utf-8-sig").removesuffix("\n").split("\n"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the vocab.txt that was saved with the model") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if (first := tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
        raise UserError(f"{path}: the first lines must be {' '.join(SPECIAL_TOKENS)}, not {listed(first)}")
    lines: dict[str, int] = {}
    for line, token in enumerate(tokens, 1):
        if lines.setdefault(token, line) != line:
            raise UserError(f"{path}:{line}: {token!r} stands there a second time; each token has one row")
    return tokens


def write_vocabulary(tokens: Iterable[str], path: Path) -> None:
    """Write one token a line, UTF-8."""
    path.write_bytes("".join(f"{token}\n" for token in tokens).encode("utf-8"))
