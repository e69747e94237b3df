"""How much of a data set's text a vocabulary does not know: the paper's Table 1."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import BertTokenizer

from glyphcrm.data.text_files import read_lines
from glyphcrm.errors import UserError
from glyphcrm.normalization import normalize
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS

MOST_TOKENS = 1 << 20  # a text is told from a vocabulary long before

IsUnknown = Callable[[str], bool]
"""Whether a vocabulary has no token for one character."""


def count_unknown(data_set: str, texts: Iterable[str], vocabularies: Mapping[str, IsUnknown]) -> list[dict[str, Any]]:
    """Count, in one pass over `texts`, what each of `vocabularies` (name -> test) does not know of them.

    Texts are normalised first, so white space does not count. A token is a character where it stands in a text;
    "characters" are the distinct ones. Shares are 0 where there is nothing. Each vocabulary is asked once for each
    distinct character.
    """
    decisions = {name: functools.cache(is_unknown) for name, is_unknown in vocabularies.items()}
    counts: Counter[str] = Counter()
    affected: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        text = normalize(text)
        counts.update(text)
        distinct = set(text)
        for name, is_unknown in decisions.items():
            affected[name] += any(map(is_unknown, distinct))
    found = []
    for name, is_unknown in decisions.items():
        unknown = list(filter(is_unknown, counts))
        unknown_tokens = sum(counts[char] for char in unknown)
        found.append(
            {
                "data_set": data_set,
                "vocabulary": name,
                "texts": total,
                "tokens": counts.total(),
                "characters": len(counts),
                "unknown_tokens": unknown_tokens,
                "unknown_characters": len(unknown),
                "texts_with_unknown": affected[name],
                "unknown_token_share": unknown_tokens / max(counts.total(), 1),
                "unknown_text_share": affected[name] / max(total, 1),
            }
        )
    return found


def unknown_to_bert(vocabulary: Path) -> IsUnknown:
    """Return the test of a BERT's ``vocab.txt``: whether transformers' own tokenizer makes [UNK] of a character.

    So letters and accents that BERT folds are known, and so is what it drops (private use and unassigned
    code points, controls). A character is asked about alone; in a text, a whole word becomes [UNK] with it.

    Raises:
        UserError: the file is missing, not UTF-8, or no BERT vocabulary.
    """
    ids = {token: row for row, token in enumerate(itertools.islice(read_lines(vocabulary), MOST_TOKENS))}
    if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
        raise UserError(f"{vocabulary}: has no line {missing[0]}; give the vocab.txt of a BERT")
    # A table, not the path: a path under its old name, vocab_file, is passed over in silence.
    tokenizer = BertTokenizer(vocab=ids)
    return lambda char: "[UNK]" in tokenizer.tokenize(char)


def beyond(tokenizer: GlyphCRMTokenizer, size: int) -> IsUnknown:
    """Return the test of a GlyphCRM's first `size` atlas rows: whether its tokenizer makes [UNK] or another row of it.

    `size` is `tokenizer.vocab_size` for what the model reads, and its configuration's `vocab_size` for what it
    predicts, which is all that a BERT of the same vocabulary reads. A character that is read as its compatibility form
    (㎡ as m2) is known if all of that is.
    """
    unknown = tokenizer.unk_token_id
    return lambda char: any(i == unknown or i >= size for i in tokenizer.encode_characters(char).tolist())
