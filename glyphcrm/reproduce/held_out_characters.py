"""Characters to leave out of pre-training, so that one sees what a model makes of them by their looks alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from glyphcrm.errors import UserError
from glyphcrm.glyphs.han import is_han
from glyphcrm.normalization import normalize

LEAST_SHARE = 0.002
MOST_SHARE = 0.05
# On 11 million characters of news, 200 characters drawn beyond the 1,000 most frequent stand in 60 to 70 % of three
# tasks' test texts and leave 60 to 70 % of the corpus; beyond the 300 most frequent they leave 12 to 25 %.
KEPT_MOST_FREQUENT = 1000


def choose_excluded(
    texts: Iterable[str],
    corpus_counts: Mapping[str, int],
    count: int,
    seed: int,
    *,
    least_share: float = LEAST_SHARE,
    most_share: float = MOST_SHARE,
    kept_most_frequent: int = KEPT_MOST_FREQUENT,
) -> frozenset[str]:
    """Draw `count` Han characters of middling frequency in a task, the same ones for the same `seed`.

    Args:
        texts: of the task, those on which the models will be tested.
        corpus_counts: character -> how often it stands in the pre-training text
            (`glyphcrm.vocabulary.count_characters`). Characters that it lacks can be drawn, too.
        least_share: a character stands in at least this share of the texts, so that it matters to the score.
        most_share: and in at most this share.
        kept_most_frequent: the most frequent characters of the corpus, this many, are never drawn: every
            sentence with a drawn character is lost to pre-training.

    Raises:
        UserError: there are no texts, or fewer than `count` such characters.
    """
    document_counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        document_counts.update(set(normalize(text)))
    # Equal counts stand in code point order, as in a vocabulary.
    by_frequency = sorted(corpus_counts, key=lambda char: (-corpus_counts[char], char))
    kept = frozenset(by_frequency[:kept_most_frequent])
    # At least one text, where the share of a few texts is less than that.
    least, most = max(1, math.ceil(least_share * total)), most_share * total
    eligible = sorted(
        char
        for char, documents in document_counts.items()
        if is_han(ord(char)) and least <= documents <= most and char not in kept
    )
    if not 1 <= count <= len(eligible):
        raise UserError(
            f"{count} held-out characters asked for; {len(eligible)} Han characters stand in {least_share:.1%} to "
            f"{most_share:.1%} of the {total:,} texts outside the corpus's {kept_most_frequent} most frequent; "
            f"give 1 to {len(eligible)}, or more text"
        )
    return frozenset(np.random.default_rng(seed).choice(eligible, count, replace=False).tolist())
