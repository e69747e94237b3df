"""Costs of single parts: the gather of distinct characters, attention on a CPU, encoding, importing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from glyphcrm_kernels.attention_cpu import attention_cpu, attention_fits_cpu

from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.tokenization import SPECIAL_TOKENS, GlyphCRMTokenizer

TEXT = "国家主席发表新年讲话，《迈向充满希望的新世纪》。（新华社记者摄）\n"


def test_gather_of_1800_distinct_characters(benchmark: Any) -> None:
    """Forward and backward over 16,384 tokens of width 768."""
    vectors = torch.randn(1800, 768, requires_grad=True)
    index = torch.randint(0, 1800, (32, 512))
    gradient = torch.randn(32, 512, 768)

    def gather() -> None:
        vectors.grad = None
        F.embedding(index, vectors).backward(gradient)

    benchmark(gather)


@pytest.mark.benchmark(group="attention, 32 x 128 tokens, 12 heads of 64, forward and backward, dropout 0.1")
@pytest.mark.parametrize("way", ["C", "PyTorch", "PyTorch without dropout"])
def test_attention(benchmark: Any, way: str) -> None:
    """As a training step on a CPU has it."""
    query, key, value = (torch.randn(32, 128, 12, 64).transpose(1, 2).requires_grad_() for _ in range(3))
    if way == "C" and not attention_fits_cpu(query, key, value):
        pytest.skip("installed without a C compiler")
    gradient = torch.randn(32, 128, 12, 64)
    p = 0.0 if way == "PyTorch without dropout" else 0.1

    def attend() -> None:
        if way == "C":
            context = attention_cpu(query, key, value, scaling=0.125, p=p)
        else:
            context = F.scaled_dot_product_attention(query, key, value, dropout_p=p).transpose(1, 2)
        torch.autograd.grad(context, (query, key, value), gradient)

    benchmark(attend)


def test_encoding_text(benchmark: Any, tmp_path: Path) -> None:
    """The fast path of pre-training, in characters a second."""
    tokens = [*SPECIAL_TOKENS, *dict.fromkeys(TEXT.strip())]
    atlas = GlyphAtlas.build(tokens, [default_font()])
    tokenizer = GlyphCRMTokenizer.from_tokens(atlas.tokens, tmp_path)
    text = TEXT * 30_000
    benchmark(tokenizer.encode_characters, text)
    if benchmark.stats:
        benchmark.extra_info["characters_per_second"] = len(text) / benchmark.stats["median"]


def test_importing_glyphcrm(benchmark: Any) -> None:
    """What `import glyphcrm` adds to `import torch, transformers`, in seconds: see extra_info."""
    program = (
        "import time, torch, transformers; t = time.perf_counter(); import glyphcrm; print(time.perf_counter() - t)"
    )

    def run() -> float:
        return float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    added = benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["seconds_added"] = added
