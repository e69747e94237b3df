"""The ranks of characters without a learned row, computed another way."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.data.sentence_pairs import split_documents
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.reproduce import open_vocabulary
from glyphcrm.reproduce.open_vocabulary import (
    BOTH,
    CHANCE,
    FREQUENCY,
    HELD_OUT,
    LEARNED,
    MEAN,
    NEVER_PREDICTED,
    PICTURES,
)
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import READ_ONLY, TEXT


def test_a_text_is_read_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two documents of 100 are held out, and of the others none stays."""

    class Document(list[str]):
        pass

    there: weakref.WeakSet[Document] = weakref.WeakSet()
    Document.__hash__ = object.__hash__  # type: ignore[method-assign, assignment]
    most = 0

    def documents(*_: object) -> Iterator[list[str]]:
        nonlocal most
        for number in range(100):
            document = Document([f"{chr(0x4E00 + number)}。" * 2])
            there.add(document)
            most = max(most, len(there))
            yield document

    monkeypatch.setattr(open_vocabulary.Text, "documents", documents)
    monkeypatch.setattr(open_vocabulary.Text, "__init__", lambda *_: None)
    sentences, counts = open_vocabulary.held_out_sentences(["text.txt"])
    _, held_out = split_documents(100, PretrainOptions().held_out)
    assert sentences == [f"{chr(0x4E00 + number)}。" for number in held_out for _ in range(2)] and most <= 2
    assert counts == {"。": 196, **{chr(0x4E00 + i): 2 for i in range(100) if i not in held_out}}


def test_ranks_by_hand(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_vocabulary, "PLACES", 2)
    torch.nn.init.normal_(model.mlm.decoder.bias)
    save_checkpoint(model, tokenizer, tmp_path)
    texts = [TEXT[i : i + 9] + READ_ONLY[i % 2] for i in range(40)]
    asked = TEXT[20:23] + READ_ONLY[:3]
    number = Counter("".join(texts))
    found = open_vocabulary.open_prediction(tmp_path, texts, number, asked)
    learned, new = (found["groups"][name] for name in (HELD_OUT, NEVER_PREDICTED))
    count = found["candidates"]
    assert count == len(set(TEXT + READ_ONLY)) and (learned["characters"], learned["places"]) == (3, 6)
    assert (new["characters"], new["places"]) == (2, 4)  # the third stands nowhere
    for group in (learned, new):
        assert group["guesses"][CHANCE]["median_rank"] == (count + 1) / 2
        assert group["guesses"][MEAN]["median_rank_among_new"] == (len(READ_ONLY) + 3 + 1) / 2
    joined = "".join(texts)
    counts = np.array([joined.count(char) for char in dict.fromkeys(TEXT + READ_ONLY)])
    of_new = joined.count(READ_ONLY[0])
    expected = (counts > of_new).sum() + ((counts == of_new).sum() + 1) / 2
    assert new["guesses"][FREQUENCY]["median_rank"] == expected
    assert LEARNED in learned["guesses"] and LEARNED not in new["guesses"]

    # The whole model, asked about one place at a time; what was never predicted has rows from the other pictures.
    alone = "".join(char for char in READ_ONLY if char in asked[3:5])
    ranks = []
    model.extend_decoder(counts=number)
    rows = tokenizer.convert_tokens_to_ids(list(dict.fromkeys(TEXT + READ_ONLY)))
    for text in texts:
        if text[-1] in alone:
            batch = tokenizer(text[:-1] + "[MASK]", return_tensors="pt")
            with torch.no_grad():
                logits = model(**batch).prediction_logits[0, len(text)]
            right = logits[tokenizer.convert_tokens_to_ids(text[-1])]
            ranks.append(int((logits[rows] > right).sum()) + 1)
    every = open_vocabulary.open_prediction(tmp_path, texts, number, alone)["groups"][NEVER_PREDICTED]["guesses"]
    assert min(ranks) <= every[BOTH]["median_rank"] <= max(ranks)
    assert every[PICTURES] != every[BOTH]
    assert f"| {FREQUENCY} |" in open_vocabulary.table(found)
    assert open_vocabulary.open_prediction(tmp_path, [], number, asked + "🀀")["groups"] == {}  # which has no row
    drawn = open_vocabulary.open_prediction(tmp_path, [text + "🀀" for text in texts], number)
    often = [char for char in set(TEXT[:-2]) if joined.count(char) >= 2]
    assert drawn["groups"][HELD_OUT]["characters"] == len(often) // 5
    assert drawn["groups"][NEVER_PREDICTED]["characters"] == 2 and drawn["common"]["loss_extended"] > 0
