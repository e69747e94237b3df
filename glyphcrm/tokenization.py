"""GlyphCRMTokenizer: one token a character, ids are rows of the glyph atlas."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy

from glyphcrm.normalization import normalize, normalize_with_offsets
from glyphcrm.tokens import VOCABULARY_FILE, read_vocabulary, write_vocabulary


class GlyphCRMTokenizer(PreTrainedTokenizer):
    """Splits text into characters and looks each up among the atlas rows.

    Text is normalised first (`glyphcrm.normalization`): NFC; white space, line ends, control and
    zero-width characters dropped; full-width forms and case kept. A pair becomes
    ``[CLS] a [SEP] b [SEP]`` with token types 0 and 1.

    Besides what every transformers tokenizer does, `return_offsets_mapping=True` gives for each token
    its range of code points in the text as it was given ((0, 0) for special tokens and padding), so that
    tags of characters can be carried over; with `is_split_into_words=True`, in the words joined together.
    Of `vocab_file`, UTF-8, each line is the token of an atlas row.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        unk_token: str = "[UNK]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        cls_token: str = "[CLS]",
        mask_token: str = "[MASK]",
        **kwargs: Any,
    ) -> None:
        self._tokens = read_vocabulary(vocab_file)
        self._ids = {token: row for row, token in enumerate(self._tokens)}
        kwargs.setdefault("model_max_length", 512)
        super().__init__(
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            special_tokens_pattern="cls_sep",
            **kwargs,
        )

    @classmethod
    def from_tokens(cls, tokens: Iterable[str], directory: str | os.PathLike[str]) -> GlyphCRMTokenizer:
        """Write `tokens` as ``vocab.txt`` into `directory` and return the tokenizer that reads it."""
        path = Path(directory) / VOCABULARY_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_vocabulary(tokens, path)
        return cls(path)

    @property
    def vocab_size(self) -> int:
        """Rows of the atlas: all ids that can be read (the model may predict fewer)."""
        return len(self._tokens)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token of each row."""
        return self._tokens

    def get_vocab(self) -> dict[str, int]:
        """Return token -> id."""
        return {**self._ids, **self.get_added_vocab()}

    @functools.cached_property
    def _id_of_code_point(self) -> np.ndarray:
        table = np.full(0x110000, self.unk_token_id, dtype=np.int32)
        for token, row in self._ids.items():
            if len(token) == 1:
                table[ord(token)] = row
        return table

    def encode_characters(self, text: str) -> np.ndarray:
        """Return the ids of a raw text, int32, without special tokens: the fast path of pre-training.

        Unlike `__call__` it reads the letters of "[MASK]" in the text as letters.
        """
        code_points = np.frombuffer(normalize(text).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        return self._id_of_code_point[code_points]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(normalize(text))

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join the characters; nothing stands between them."""
        return "".join(tokens)

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:  # type: ignore[override]
        if not kwargs.get("return_offsets_mapping"):
            return super()._encode_plus(text, text_pair, **kwargs)
        return_tensors = kwargs.pop("return_tensors", None)
        words = kwargs.pop("is_split_into_words", False)
        if isinstance(text, list | tuple) and not (words and (not text or isinstance(text[0], str))):
            # Each sequence comes back through the branch below; padding then lengthens its ids.
            encoding = super()._encode_plus(cast(Any, text), text_pair, is_split_into_words=words, **kwargs)
            offsets = encoding["offset_mapping"]
            for row, ids in zip(offsets, encoding["input_ids"], strict=True):
                padding = [(0, 0)] * (len(ids) - len(row))
                row[:] = row + padding if self.padding_side == "right" else padding + row
            return BatchEncoding(dict(encoding), tensor_type=return_tensors)
        # The ids travel through truncation, special tokens and padding with their offsets on them.
        ids = self._located_ids("".join(text) if words else text)
        pair_ids = None if text_pair is None else self._located_ids("".join(text_pair) if words else text_pair)
        kwargs["padding"] = kwargs.pop("padding_strategy", PaddingStrategy.DO_NOT_PAD).value
        kwargs["truncation"] = kwargs.pop("truncation_strategy", TruncationStrategy.DO_NOT_TRUNCATE).value
        encoding = self.prepare_for_model(ids, pair_ids, **kwargs)
        encoding["offset_mapping"] = [getattr(i, "offset", (0, 0)) for i in encoding["input_ids"]]
        encoding["input_ids"] = [int(i) for i in encoding["input_ids"]]
        return BatchEncoding(dict(encoding), tensor_type=return_tensors, prepend_batch_axis=True)

    def _located_ids(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for piece in self.tokens_trie.split(text):
            if piece in self._added_tokens_encoder:
                ids.append(_LocatedId(self._added_tokens_encoder[piece], (start, start + len(piece))))
            else:
                normalized, offsets = normalize_with_offsets(piece)
                ids.extend(
                    _LocatedId(self._convert_token_to_id(char), (start + first, start + last))
                    for char, (first, last) in zip(normalized, offsets, strict=True)
                )
            start += len(piece)
        return ids

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write ``vocab.txt`` into `save_directory` and return its path."""
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{VOCABULARY_FILE}"
        write_vocabulary(self._tokens, path)
        return (str(path),)


class _LocatedId(int):
    """A token id that remembers where in the text it came from."""

    offset: tuple[int, int]

    def __new__(cls, value: int, offset: tuple[int, int]) -> _LocatedId:
        self = super().__new__(cls, value)
        self.offset = offset
        return self
