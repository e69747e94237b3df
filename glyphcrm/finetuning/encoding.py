"""Examples of a task to what a model reads, by the model's own tokenizer; the same for every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.data.sentences import windows
from glyphcrm.finetuning.unseen import inside, line_of_code_point, settled, speakers
from glyphcrm.normalization import clusters
from glyphcrm.tasks import Example, Kind, TaggedExample, TextExample

TEXT_SPECIALS = 2  # [CLS] and [SEP] around a single text
HEAD_SHARE = 128 / 510  # of a text cut to head and tail: Sun et al. 2019 (arXiv:1905.05583), section 5.3.1
CHUNK = 1024  # texts a tokenizer gets at a time

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Feature:
    """What a model reads at once: a text, a pair, or a window of a sentence to tag."""

    input_ids: Integers  # (L,), with [CLS] and [SEP]
    token_type_ids: Integers  # (L,)
    labels: Integers  # () for a text; for a window (L,), the tag of a character at its first token, -100 elsewhere
    example: int  # index of the example it comes from
    characters: Integers  # (n,), for a window: the code points of the example's text at which its characters begin
    positions: Integers  # (n,), where the first token of each stands in `input_ids`
    truncated: bool = False  # whether a part of the text was left out

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    kind: Kind,
    labels: Sequence[str],
    max_length: int,
    truncation: str = "head",
    description: str | None = None,
) -> list[Feature]:
    """Return the features of `examples`, in their order.

    A text of more than `max_length` tokens is truncated as the tokenizer does it (of a pair, the longer one loses its
    last token until both fit), or, with "head+tail", to its first quarter and its last three. A label that is not among
    `labels` becomes -100.

    A sentence to tag is cut into windows instead. It is read character by character: what the tokenizer would take for
    one token, such as "[MASK]" or a word, is not. A tag of a line with several characters is that of the first, and the
    others continue it; what is not seen has no token and no label, and its tags go where `settled` lets them go.

    With a `description`, a progress bar appears if it takes more than a second or two.
    """
    ids = {label: i for i, label in enumerate(labels)}
    if kind is Kind.TAGGING:
        return [
            feature
            for index, example in enumerate(_with_bar(examples, description))
            for feature in _encode_sentence(tokenizer, cast(TaggedExample, example), index, ids, max_length)
        ]
    texts = cast(Sequence[TextExample], examples)
    features: list[Feature] = []
    for first in _with_bar(range(0, len(texts), CHUNK), description):
        features += _encode_texts(tokenizer, texts[first : first + CHUNK], first, ids, max_length, truncation)
    return features


def _encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TextExample],
    first: int,
    ids: dict[str, int],
    max_length: int,
    truncation: str,
) -> list[Feature]:
    nothing = np.zeros(0, np.int64)
    pairs = [example.pair or "" for example in examples] if examples[0].pair is not None else None
    asked = {"return_attention_mask": False, "return_token_type_ids": True}  # whatever its file says
    encoding = tokenizer([example.text for example in examples], pairs, **asked)
    features = []
    rows = zip(examples, encoding["input_ids"], encoding["token_type_ids"], strict=True)
    for index, (example, input_ids, types) in enumerate(rows, start=first):
        too_long = len(input_ids) > max_length
        if too_long and truncation == "head+tail":
            input_ids, types = _head_and_tail(input_ids, max_length), types[:max_length]
        elif too_long:
            cut = tokenizer(example.text, example.pair, truncation=True, max_length=max_length, **asked)
            input_ids, types = cut["input_ids"], cut["token_type_ids"]
        ids_array, types_array = np.array((input_ids, types), np.int64)
        label = np.array(ids.get(example.label, IGNORED_LABEL), np.int64)
        features.append(Feature(ids_array, types_array, label, index, nothing, nothing, too_long))
    return features


def _with_bar(work: Sequence[Any], description: str | None) -> Any:
    return tqdm(work, description, disable=description is None, delay=1.0, leave=False, dynamic_ncols=True)


def _head_and_tail(input_ids: list[int], max_length: int) -> list[int]:
    kept = max_length - TEXT_SPECIALS
    head = round(kept * HEAD_SHARE)
    return input_ids[: 1 + head] + input_ids[len(input_ids) - 1 - (kept - head) :]


def _encode_sentence(
    tokenizer: PreTrainedTokenizerBase, example: TaggedExample, index: int, ids: dict[str, int], max_length: int
) -> list[Feature]:
    tokens, owners = _locate(tokenizer, example.text)
    starts = np.unique(owners)
    tags = np.full(len(example.text), IGNORED_LABEL, np.int64)
    tags[starts] = [ids.get(tag, IGNORED_LABEL) for tag in _spread(example, starts.tolist())]
    sizes = np.bincount(owners, minlength=len(example.text))
    features = []
    for start, end in windows(example.text, max_length - TEXT_SPECIALS, sizes.tolist()):
        low, high = np.searchsorted(owners, (start, end))
        high = min(high, low + max_length - TEXT_SPECIALS)  # one character of more tokens than a window has
        if low == high:
            continue  # nothing that can be seen
        characters, firsts = np.unique(owners[low:high], return_index=True)
        positions = firsts + 1  # after [CLS]
        input_ids = np.concatenate([[tokenizer.cls_token_id], tokens[low:high], [tokenizer.sep_token_id]])
        labels = np.full(len(input_ids), IGNORED_LABEL, np.int64)
        labels[positions] = tags[characters]
        features.append(Feature(input_ids, np.zeros(len(input_ids), np.int64), labels, index, characters, positions))
    return features


def _locate(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Integers, Integers]:
    """Return the tokens of a sentence without special ones, and for each the code point at which its character begins.

    Each character, with its accents, is a word by itself; so no tokenizer joins two.
    """
    ranges = clusters(text)
    encoding = tokenizer(
        [text[start:end] for start, end in ranges],
        is_split_into_words=True,
        add_special_tokens=False,
        return_attention_mask=False,
    )
    owners = [ranges[word][0] for word in encoding.word_ids() if word is not None]
    return np.array(encoding["input_ids"], np.int64), np.array(owners, np.int64)


def _spread(example: TaggedExample, starts: Sequence[int]) -> list[str]:
    """Return the tag of the character at each of `starts`: of the first of a line its tag, then what continues it."""
    lines = line_of_code_point(example.characters)
    tags = settled(example.tags, speakers(example.characters, frozenset(starts)))
    lines_before = [-1, *(lines[start] for start in starts)]
    return [
        inside(tags[lines[start]]) if lines[start] == before else tags[lines[start]]
        for start, before in zip(starts, lines_before, strict=False)
    ]
