"""What a run says at its end: characters for a few masked ones of the held-out text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.data.sentence_pairs import SentencePairs
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.pretraining.fill_mask import print_fill_mask
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.classic import TEXT


def test_guesses_are_characters(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However likely [UNK] is."""
    with torch.no_grad():
        model.mlm.decoder.bias[: len(SPECIAL_TOKENS)] = 2.0
    save_checkpoint(model, tokenizer, tmp_path / "model")
    store = SimpleNamespace(sentence=lambda i: tokenizer.encode_characters(TEXT[i : i + 9]))
    pairs = type("Pairs", (), {"__len__": lambda self: 2, "spans": np.array([[0, 1], [9, 10]]), "store": store})
    print_fill_mask(tmp_path / "model", cast(SentencePairs, pairs()), tokenizer)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"  {TEXT[:4]}▢{TEXT[5:9]}  ({TEXT[4]})" and len(lines) == 4
    for line in lines[1::2]:
        guesses = line.split()[::2]
        assert len(guesses) == 5 and set(guesses) <= set(TEXT)
