"""Test texts rewritten character by character: look-alikes, and the other of the two Chinese scripts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from glyphcrm.data.text_files import read_lines
from glyphcrm.errors import UserError, shown
from glyphcrm.tasks.examples import Example, TaggedExample


def whole_text(example: Example) -> str:
    """Return all characters of an example; of a pair, both texts joined."""
    return example.text if isinstance(example, TaggedExample) else example.text + (example.pair or "")


def substitute(text: str, look_alikes: Mapping[str, str], share: float, seed: int, index: int) -> str:
    """Return `text` with a `share` of the characters that have look-alikes replaced by one of them.

    Each is replaced with probability `share`, by any of its look-alikes with the same probability. The draw
    depends on `seed`, `index` (of the text in its data set) and the position alone: what is replaced at one share
    is replaced in the same way at every higher one. The length stays, so tags stay where they belong.
    """
    draws = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64))).random((len(text), 2))
    characters = list(text)
    for position in np.flatnonzero(draws[:, 0] < share).tolist():
        if choices := look_alikes.get(characters[position]):
            characters[position] = choices[int(draws[position, 1] * len(choices))]
    return "".join(characters)


def to_traditional(text: str) -> str:
    """Return `text` in traditional script, each character by itself: one for one, so the length stays.

    Only the context can tell which of several candidates is meant: texts come out as by a simple converter.

    Raises:
        UserError: OpenCC is not installed.
    """
    return "".join(map(_converter(), text))


def rewritten(example: Example, rewrite_text: Callable[[str], str]) -> Example:
    """Return the example with its text rewritten, label or tags kept.

    Both sentences of a pair go through `rewrite_text` as one text, so that a random rewriting draws
    anew for the second.

    Raises:
        ValueError: `rewrite_text` changed the number of characters.
    """
    old = whole_text(example)
    new = rewrite_text(old)
    if len(new) != len(old):
        raise ValueError(f"a text of {len(old)} characters became {len(new)}; labels of characters would not fit")
    if isinstance(example, TaggedExample):
        ends = itertools.accumulate(map(len, example.characters), initial=0)
        return replace(example, characters=tuple(new[start:end] for start, end in itertools.pairwise(ends)))
    end = len(example.text)
    return replace(example, text=new[:end], pair=None if example.pair is None else new[end:])


def read_look_alikes(path: Path) -> dict[str, str]:
    """Read a SIGHAN confusion set, such as ``similar_shape.txt``: a line is ``character,look-alikes``.

    Lines of the same character add up. A character is never its own look-alike, and none stands twice. Lines
    without the character before the comma are passed over: the published file has five.

    Raises:
        UserError: the file is missing, not UTF-8, holds nothing, or a line is not of that form.
    """
    found: dict[str, dict[str, None]] = {}
    for number, line in enumerate(map(str.strip, read_lines(path)), start=1):
        char, _, others = line.partition(",")
        if not char:
            continue
        if len(char) != 1 or not others or any(other.isspace() for other in others):
            raise UserError(
                f"{path}:{number}: {shown(line)} is no character, a comma and its look-alikes; "
                "give a SIGHAN confusion set such as similar_shape.txt"
            )
        found.setdefault(char, {}).update(dict.fromkeys(others.replace(char, "")))
    look_alikes = {char: "".join(others) for char, others in found.items() if others}
    if not look_alikes:
        raise UserError(f"{path}: holds no look-alikes; give a SIGHAN confusion set such as similar_shape.txt")
    return look_alikes


@cache
def _converter() -> Callable[[str], str]:
    try:
        from opencc import OpenCC
    except ImportError:
        raise UserError('traditional script needs OpenCC: pip install "glyphcrm[reproduce]"') from None
    return cache(OpenCC("s2t").convert)
