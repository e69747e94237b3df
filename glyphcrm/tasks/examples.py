"""What a task is made of: examples, splits, and how a model is trained and scored on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """What is predicted: the label of a text, of a pair of texts, or of each character."""

    SENTENCE = "sentence"
    PAIR = "pair"
    TAGGING = "tagging"


Spelling = tuple[str, str]  # a label as the file writes it, and as it was read


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text with a label; of a `Kind.PAIR` task, a text and its `pair`. `where` is "file:line".

    `spellings` are the labels that the file writes with characters that cannot be seen, and that were read as others.
    """

    text: str
    label: str
    pair: str | None = None
    where: str = ""
    spellings: tuple[Spelling, ...] = field(default=(), compare=False)

    @property
    def answer(self) -> str:
        """What a model is to say."""
        return self.label


@dataclass(frozen=True, slots=True)
class TaggedExample:
    """Characters, as in the file, with a BIO tag each: O, B-PER, I-PER, ...

    Where the file gives one tag to a number, a word or an emoji, all of it is one of `characters`; models read its
    code points one by one. `where` is "file:line" of the first; in BIO columns each further one stands a line below.
    `spellings` as of a `TextExample`.
    """

    characters: tuple[str, ...]
    tags: tuple[str, ...]
    where: str = ""
    spellings: tuple[Spelling, ...] = field(default=(), compare=False)

    @property
    def answer(self) -> tuple[str, ...]:
        """What a model is to say: the tags."""
        return self.tags

    @property
    def text(self) -> str:
        """The characters as one string."""
        return "".join(self.characters)


Example = TextExample | TaggedExample


@dataclass(frozen=True)
class Splits:
    """The three parts of a task, the labels in their fixed order, and what a reader of the scores must know."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, tuple[Example, ...]]:
        """The three parts by name, in order."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    def fingerprint(self) -> str:
        """Return what changes when an example, its label, or the order does."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for part in self.parts.values():
            digest.update(f"\n{len(part)}\n".encode())
            for example in part:
                content = [example.characters] if isinstance(example, TaggedExample) else [example.text, example.pair]
                digest.update(repr((*content, example.answer)).encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: where its examples come from, and how a model is trained and scored on them.

    The defaults are the recipe of the paper (learning rate, length), and ours where it gives none.
    """

    name: str
    title: str
    kind: Kind = Kind.SENTENCE
    source: str  # where the set can be had and in which format; one line
    read: Callable[[Path], Splits]  # takes the folder that holds the files
    folder: str = ""  # its folder below --data; empty: the task brings its files along
    learning_rate: float = 3e-5
    metric: str = "accuracy"  # or "macro_f1"; of tagging "f1": micro F1 over entities
    max_length: int = 512  # tokens, [CLS] and [SEP] included
    batch_size: int = 32
    epochs: int = 3


class MissingFilesError(Exception):
    """A folder lacks the files of a task; says which."""
