"""GlyphCRMTokenizer: one token a character, ids are rows of the glyph atlas."""

from __future__ import annotations

import functools
import json
import os
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast

from glyphcrm.charsmap import precompiled
from glyphcrm.errors import UserError, shown
from glyphcrm.loader_file import in_loader, write_loader
from glyphcrm.normalization import DROPPED, normalize, stand_ins, wide_clusters
from glyphcrm.tokens import VOCABULARY_FILE, read_vocabulary, write_vocabulary

TOKENIZER_FILE = "tokenizer.json"
LARGEST_FILE = 1 << 26  # bytes of a .json; ours have about one million
# What a tokenizer_config.json may not set: transformers would build another tokenizer from it.
_NOT_FROM_FILES = (
    *("tokenizer_file", "tokenizer_object", "gguf_file", "vocab", "merges", "backend"),
    *("post_processor", "tokenizer_truncation", "tokenizer_padding", "_json_truncation", "_json_padding"),
    "auto_map",  # it is written by the class
)
_END = "\x01"  # behind a character that is replaced; no text has it, since it is dropped
_NO_ID = np.int32(-1).tobytes()
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"  # what half of a surrogate pair is read as


class GlyphCRMTokenizer(PreTrainedTokenizerFast):
    """Splits text into characters and looks each up among the atlas rows.

    Text is normalised first (`glyphcrm.normalization`): NFC; white space, line ends, control and
    zero-width characters dropped; full-width forms and case kept. A character without a row is read as
    its compatibility form if that has rows (`stand_ins`): ⼈ (U+2F08) as 人, ㎡ as m2, ⻔ as 门; else it is [UNK].
    A pair becomes ``[CLS] a [SEP] b [SEP]`` with token types 0 and 1.

    It is a fast tokenizer, on the `tokenizers` library, with all that these have: `word_ids()` (each character a
    word), `char_to_token`, overflow with a stride, offsets. Offsets are ranges of code points of the text as
    it was given; the token of a letter has its accents, jamo and what lies between them in its range, and lookups
    such as `char_to_token` go by these ranges. Ids do not depend on what else is asked for, and several threads may
    call one tokenizer. Ids that are no row decode to [UNK].

    `vocab_file` is UTF-8, each line the token of an atlas row. It alone decides about rows: ``tokenizer.json``, which
    is saved beside it for other programs, is read for added tokens only.

    Raises:
        UserError: a file is missing, damaged or too large, or `model_max_length` is no number above 0.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE, "tokenizer_file": TOKENIZER_FILE}
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    # For `AutoTokenizer` where nothing has imported this package: it says what is missing, or asks for trust.
    _auto_map = {"AutoTokenizer": [None, in_loader("GlyphCRMTokenizer")]}

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        unk_token: str = "[UNK]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        cls_token: str = "[CLS]",
        mask_token: str = "[MASK]",
        model_max_length: float = 512,
        **kwargs: Any,
    ) -> None:
        if isinstance(model_max_length, bool) or not isinstance(model_max_length, int | float) or model_max_length < 1:
            raise UserError(f"model_max_length: {shown(str(model_max_length))}; give a number of tokens, 1 or more")
        self._tokens = read_vocabulary(vocab_file)
        self._ids = {token: row for row, token in enumerate(self._tokens)}
        self._stand_ins = stand_ins(self._ids)
        self._tokenizer = self._backend(*map(str, (unk_token, cls_token, sep_token)))
        super().__init__(
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            model_max_length=model_max_length,
            **kwargs,
        )

    @classmethod
    def from_tokens(cls, tokens: Iterable[str], directory: str | os.PathLike[str]) -> GlyphCRMTokenizer:
        """Write `tokens` as ``vocab.txt`` into `directory` and return the tokenizer that reads it."""
        path = Path(directory) / VOCABULARY_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_vocabulary(tokens, path)
        return cls(path)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *inputs: Any, **kwargs: Any) -> GlyphCRMTokenizer:
        """As of every tokenizer; raise `UserError` for damaged files."""
        where = pretrained_model_name_or_path
        for path in Path(where).glob("*.json") if isinstance(where, str | os.PathLike) else ():
            if path.stat().st_size > LARGEST_FILE and "token" in path.name:
                raise UserError(f"{path}: larger than {LARGEST_FILE >> 20} MiB; is this a saved tokenizer?")
        try:
            return super().from_pretrained(where, *inputs, **kwargs)
        except (UserError, OSError):
            raise
        except Exception as error:  # whatever damaged files make transformers raise
            reason = shown(f"{type(error).__name__}: {error}")
            raise UserError(f"{where}: no tokenizer that can be read ({reason}); copy its files again") from error

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Leave the files as they are for `__init__`; transformers asks for this after it has found them."""
        if kwargs.get("vocab_file") is None:
            raise UserError(f"{kwargs.get('name_or_path')}: no {VOCABULARY_FILE}; copy it from where it was saved")
        return {name: value for name, value in kwargs.items() if name not in _NOT_FROM_FILES}

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoTokenizer") -> None:
        """Nothing: else transformers would put copies of this module beside the tokenizers that it saves."""

    @property
    def vocab_size(self) -> int:
        """Rows of the atlas: all ids that can be read (the model may predict fewer)."""
        return len(self._tokens)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token of each row."""
        return self._tokens

    def encode_characters(self, text: str) -> np.ndarray:
        """Return the ids of a raw text, int32, without special tokens: the fast path of pre-training.

        Unlike `__call__` it reads the letters of "[MASK]" in the text as letters, and knows no added tokens.
        """
        text = normalize(text)
        ids = self._look_up(text)
        if _NO_ID in ids.tobytes():  # for short texts three times as fast as numpy's minimum
            ids = self._look_up(normalize(text.translate(self._translation)))
        return ids

    def _look_up(self, text: str) -> np.ndarray:
        return self._id_of_code_point[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")]

    @functools.cached_property
    def _id_of_code_point(self) -> np.ndarray:
        """Ids by code point, int32; -1 where something else is to be read."""
        table = np.full(0x110000, self.unk_token_id, dtype=np.int32)
        for token, row in self._ids.items():
            if len(token) == 1:
                table[ord(token)] = row
        table[[ord(char) for char in self._stand_ins]] = -1
        table[0xD800:0xE000] = table[ord(_REPLACEMENT)]
        return table

    @functools.cached_property
    def _translation(self) -> dict[int, str]:
        return str.maketrans(self._stand_ins)

    def _backend(self, unk_token: str, cls_token: str, sep_token: str) -> Tokenizer:
        # WordPiece, not WordLevel, of single characters: NER pipelines ask it where words end.
        backend = Tokenizer(models.WordPiece(self._ids, unk_token=unk_token))
        dropped = _character_class(point for first, last in DROPPED for point in range(first, last + 1))
        steps = [normalizers.Replace(Regex(f"{dropped}+"), ""), normalizers.NFC()]
        if self._stand_ins:
            # `Precompiled` replaces a whole grapheme, accents too; a control behind the character ends the grapheme.
            replaced = _character_class(map(ord, self._stand_ins))
            steps.append(normalizers.Replace(Regex(f"(?<={replaced})"), _END))
            steps += [normalizers.Precompiled(precompiled({**self._stand_ins, _END: ""})), normalizers.NFC()]
        backend.normalizer = normalizers.Sequence(steps)
        backend.pre_tokenizer = pre_tokenizers.FixedLength(length=1)
        backend.decoder = decoders.Fuse()
        ids = [(token, self._ids[token]) for token in dict.fromkeys((cls_token, sep_token)) if token in self._ids]
        if len(ids) < 2 or unk_token not in self._ids:
            names = ", ".join(map(shown, (unk_token, cls_token, sep_token)))
            raise UserError(f"unk_token, cls_token, sep_token: {names}; give different tokens of {VOCABULARY_FILE}")
        single = f"{cls_token}:0 $A:0 {sep_token}:0"
        backend.post_processor = processors.TemplateProcessing(single, f"{single} $B:1 {sep_token}:1", ids)
        return backend

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        # Padding and truncation are settings of the one backend: no other thread may set them meanwhile.
        with _lock:
            try:
                encoding = super()._encode_plus(text, text_pair, *args, **kwargs)
            except (UnicodeEncodeError, TypeError):
                whole, whole_pair = _without_surrogates(text), _without_surrogates(text_pair)
                if (whole, whole_pair) == (text, text_pair):
                    raise
                encoding = super()._encode_plus(whole, whole_pair, *args, **kwargs)
        _stretch_over_clusters(encoding, _samples(text, text_pair, bool(kwargs.get("is_split_into_words"))))
        return encoding

    def _decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return super()._decode(self._as_rows(ids), *args, **kwargs)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or a list of those of several; [UNK] for one that is no row."""
        if isinstance(ids, int):
            return super().convert_ids_to_tokens(self._as_rows([ids])[0])
        return super().convert_ids_to_tokens(self._as_rows(ids), skip_special_tokens)

    def _as_rows(self, ids: Iterable[Any]) -> list[int]:
        count, unknown = len(self), self.unk_token_id
        return [i if 0 <= i < count else unknown for i in map(int, ids)]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write ``vocab.txt`` into `save_directory` and return its path."""
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{VOCABULARY_FILE}"
        write_vocabulary(self._tokens, path)
        return (str(path),)

    def _save_pretrained(
        self,
        save_directory: Any,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        written = self.save_vocabulary(save_directory, filename_prefix)
        write_loader(Path(save_directory))
        backend: Any = self._tokenizer
        with _lock:  # what the last call asked for is no property of the tokenizer
            backend.no_truncation()
            backend.no_padding()
            saved = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        return (*saved, *written)


_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # the thread that held it has no copy in the child


def _character_class(points: Iterable[int]) -> str:
    """Return a regular expression that matches one of some code points."""
    ranges: list[list[int]] = []
    for point in sorted(points):
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "[" + "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in ranges) + "]"


def _without_surrogates(text: Any) -> Any:
    if isinstance(text, str):
        return _SURROGATE.sub(_REPLACEMENT, text)
    return type(text)(map(_without_surrogates, text)) if isinstance(text, list | tuple) else text


def _samples(text: Any, text_pair: Any, words: bool) -> list[tuple[Any, ...]]:
    """Return for each sample its one or two sequences, each a text or a list of words."""
    first: Any = text[0] if isinstance(text, list | tuple) and text else None
    if not isinstance(text, list | tuple) or (words and (not text or isinstance(first, str))):
        return [(text, text_pair)]
    if text_pair is not None:
        return list(zip(text, text_pair, strict=True))
    if not words:
        return [tuple(sample) if isinstance(sample, list | tuple) else (sample,) for sample in text]
    is_pair = bool(first) and not isinstance(first[0], str)
    return [tuple(sample) for sample in text] if is_pair else [(sample,) for sample in text]


def _stretch_over_clusters(encoding: BatchEncoding, samples: Sequence[tuple[Any, ...]]) -> None:
    """Let offsets take in all of the cluster that they begin in, where the backend tells its first character.

    Those of `encoding.encodings`, which lookups such as `char_to_token` read, and "offset_mapping", if there is one.
    """
    clusters_of = functools.cache(_wide_clusters)
    encodings = encoding.encodings or []
    origin = encoding.get("overflow_to_sample_mapping", range(len(encodings)))
    offsets: Any = encoding.get("offset_mapping")
    single = isinstance(offsets, list) and not (offsets and isinstance(offsets[0], list))  # it has no batch axis
    rows = [offsets] if single else offsets
    for number, (tokens, place) in enumerate(zip(encodings, origin, strict=True)):
        sample = samples[int(place)]
        if not any(clusters_of(text) for part in sample for text in _texts(part)):
            continue
        stretched = list(tokens.offsets)
        for i, (part, word) in enumerate(zip(tokens.sequence_ids, tokens.word_ids, strict=True)):
            if part is not None:
                source = sample[part]
                of_text = clusters_of(source if isinstance(source, str) else source[word])
                stretched[i] = of_text.get(stretched[i][0], stretched[i])
        encodings[number] = _with_offsets(tokens, stretched)
        if rows is not None and isinstance(rows[number], list):
            rows[number][:] = stretched
        elif rows is not None:
            for i, (start, end) in enumerate(stretched):
                rows[number][i][0], rows[number][i][1] = start, end


def _with_offsets(tokens: Encoding, offsets: Sequence[tuple[int, int]]) -> Encoding:
    """Return a copy of what the backend has found with other offsets: it has no setter, but is pickled as JSON."""
    copy = Encoding()
    copy.__setstate__(json.dumps({**json.loads(tokens.__getstate__()), "offsets": offsets}).encode())
    return copy


def _texts(part: Any) -> Sequence[str]:
    return [part] if isinstance(part, str) else part or ()


def _wide_clusters(text: str) -> dict[int, tuple[int, int]]:
    return {i: (start, end) for start, end in wide_clusters(text) for i in range(start, end)}
