"""Examples to features and back: nothing lost, nothing moved, whatever the tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, PreTrainedTokenizerBase

from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.finetuning.collator import FinetuningCollator
from glyphcrm.finetuning.encoding import Feature, encode
from glyphcrm.finetuning.metrics import score
from glyphcrm.finetuning.prediction import assemble
from glyphcrm.finetuning.training_order import TrainingOrder
from glyphcrm.finetuning.unseen import OUTSIDE, settled, speakers
from glyphcrm.normalization import clusters
from glyphcrm.tasks import Kind, TaggedExample, TextExample
from glyphcrm.tokenization import GlyphCRMTokenizer

TAGS = ("O", "B-PER", "I-PER")
# A mark in, white space, a combining accent, a letter that is composed with it, a ligature that NFC takes apart.
ACCENT = "\u0301"
ODD = f"天地玄。，！ \t\u3000\u200be{ACCENT}龘\ufb1d𠮷A"


@pytest.fixture(params=["glyphcrm", "pieces"])
def any_tokenizer(
    request: pytest.FixtureRequest, tokenizer: GlyphCRMTokenizer, bert_tokenizer: BertTokenizer
) -> PreTrainedTokenizerBase:
    return tokenizer if request.param == "glyphcrm" else bert_tokenizer


@settings(deadline=None)
@given(lines=st.lists(st.text(ODD, min_size=1, max_size=3), min_size=1, max_size=30), data=st.data())
def test_tags_survive_cutting_and_gluing(
    lines: list[str], data: st.DataObject, tokenizer: GlyphCRMTokenizer, bert_tokenizer: BertTokenizer
) -> None:
    tags = tuple(data.draw(st.lists(st.sampled_from(TAGS), min_size=len(lines), max_size=len(lines))))
    example = TaggedExample(tuple(lines), tags)
    expected = settled(tags, speakers(lines))
    for reader in (tokenizer, bert_tokenizer):
        features = encode(reader, [example], Kind.TAGGING, TAGS, max_length=12)
        assert all(len(feature) <= 12 for feature in features)
        assert all((feature.labels[feature.positions] != IGNORED_LABEL).all() for feature in features)
        assert sum((feature.labels != IGNORED_LABEL).sum() for feature in features) == sum(map(_tokens, features))
        starts = [int(start) for feature in features for start in feature.characters]
        kept = clusters(example.text)
        if reader is bert_tokenizer:
            kept = [(start, end) for start, end in kept if example.text[start] != ACCENT]  # it drops accents
            if len(kept) < len(clusters(example.text)):
                continue
        assert starts == [start for start, _ in kept]
        # A model that gives each token its gold tag is right about every entity.
        right = [feature.labels[feature.positions] for feature in features]
        (predicted,) = assemble(features, right, [example], Kind.TAGGING, TAGS)
        assert predicted == expected
        if "B-PER" in expected or set(expected) < {OUTSIDE} < set(tags):
            assert score(Kind.TAGGING, [example], [predicted])["f1"] == 1.0


def _tokens(feature: Feature) -> int:
    return len(feature.characters)


def test_each_character_keeps_its_own_tag_among_odd_ones(
    tokenizer: GlyphCRMTokenizer, bert_tokenizer: BertTokenizer
) -> None:
    characters = tuple("天 e\u0301地")
    example = TaggedExample(characters, ("B-PER", "I-PER", "O", "O", "B-PER"))
    (feature,) = encode(tokenizer, [example], Kind.TAGGING, TAGS, 64)
    assert feature.characters.tolist() == [0, 2, 4]  # the accent is part of é
    assert tokenizer.convert_ids_to_tokens(feature.input_ids.tolist()) == ["[CLS]", "天", "[UNK]", "地", "[SEP]"]
    assert feature.labels.tolist() == [IGNORED_LABEL, 1, 0, 1, IGNORED_LABEL]
    (feature,) = encode(bert_tokenizer, [example], Kind.TAGGING, TAGS, 64)
    assert feature.characters.tolist() == [0, 2, 4]
    # A mark that is not composed is a token without a tag of its own; letters of a special token are letters.
    (feature,) = encode(tokenizer, [TaggedExample(tuple("z\u0304天"), ("B-PER", "O", "O"))], Kind.TAGGING, TAGS, 64)
    assert feature.labels.tolist() == [IGNORED_LABEL, 1, IGNORED_LABEL, 0, IGNORED_LABEL]
    (feature,) = encode(tokenizer, [TaggedExample(tuple("[MASK]"), ("B-PER",) * 6)], Kind.TAGGING, TAGS, 64)
    assert len(feature.characters) == 6 and tokenizer.mask_token_id not in feature.input_ids


def test_a_tag_is_spread_over_the_characters_of_its_line(
    tokenizer: GlyphCRMTokenizer, bert_tokenizer: BertTokenizer
) -> None:
    example = TaggedExample(("天", "1998", "地", "NBA", "\U0001f44d\U0001f3fd"), ("O", "B-PER", "I-PER", "B-PER", "O"))
    expected = [0, 1, 2, 2, 2, 2, 1, 2, 2, 0, 0]
    for reader in (tokenizer, bert_tokenizer):
        features = encode(reader, [example], Kind.TAGGING, TAGS, max_length=8)
        assert all(len(feature.characters) <= 6 for feature in features)  # the length counts characters, not lines
        labels = [feature.labels[feature.positions] for feature in features]
        assert np.concatenate(labels).tolist() == expected
        assert assemble(features, labels, [example], Kind.TAGGING, TAGS) == [example.tags]
    # The first character of a line speaks for it.
    labels = [np.where(row == 2, 0, row) for row in labels]
    assert assemble(features, labels, [example], Kind.TAGGING, TAGS) == [("O", "B-PER", "O", "B-PER", "O")]


@pytest.mark.parametrize("pair", [None, "宇宙洪荒日月"])
def test_texts_are_what_the_tokenizer_itself_makes_of_them(
    any_tokenizer: PreTrainedTokenizerBase, pair: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it may leave token types out, if its file says so."""
    monkeypatch.setattr(any_tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    kind = Kind.SENTENCE if pair is None else Kind.PAIR
    asked = {"truncation": "longest_first", "return_token_type_ids": True}
    for max_length in (8, 64):
        (feature,) = encode(any_tokenizer, [TextExample("天地玄黄宇宙洪荒", "b", pair)], kind, ("a", "b"), max_length)
        expected = any_tokenizer("天地玄黄宇宙洪荒", pair, max_length=max_length, **asked)
        assert feature.input_ids.tolist() == expected["input_ids"]
        assert feature.token_type_ids.tolist() == expected["token_type_ids"]
        assert feature.labels == 1 and feature.truncated == (max_length == 8)


def test_head_and_tail_keep_both_ends(any_tokenizer: PreTrainedTokenizerBase) -> None:
    text = ("天" * 200 + "地" * 400 + "玄" * 300)[:800]
    (feature,) = encode(any_tokenizer, [TextExample(text, "a")], Kind.SENTENCE, ("a",), 512, "head+tail")
    kept = any_tokenizer.convert_ids_to_tokens(feature.input_ids.tolist())
    assert kept == ["[CLS]", *text[:128], *text[-382:], "[SEP]"] and len(feature.token_type_ids) == 512
    (short,) = encode(any_tokenizer, [TextExample("天" * 510, "a")], Kind.SENTENCE, ("a",), 512, "head+tail")
    assert len(short) == 512 and not short.truncated


def test_a_batch_holds_every_feature_for_either_kind_of_model(tokenizer: GlyphCRMTokenizer) -> None:
    texts = [TextExample("天地", "a"), TextExample("玄" * 11, "b")]
    features = encode(tokenizer, texts, Kind.SENTENCE, ("a", "b"), 64)
    glyphs = FinetuningCollator(0, positions=64, glyphs=True)(features)
    ids = FinetuningCollator(0, positions=64, glyphs=False)(features)
    assert ids["input_ids"].shape == (2, 16) and ids["labels"].tolist() == [0, 1]
    assert (glyphs["glyph_ids"][glyphs["glyph_index"]] == ids["input_ids"]).all() and "glyph_ids" not in ids
    assert (glyphs["input_ids"] == ids["input_ids"]).all()
    assert ids["attention_mask"].sum(1).tolist() == [4, 13]
    # A model with 13 positions cannot be given 16.
    assert FinetuningCollator(0, positions=13, glyphs=False)(features)["input_ids"].shape == (2, 13)
    tagged = [TaggedExample(tuple("天地"), ("O", "B-PER")), TaggedExample(tuple("玄" * 9), ("O",) * 9)]
    batch = FinetuningCollator(0, positions=64, glyphs=True)(encode(tokenizer, tagged, Kind.TAGGING, TAGS, 64))
    assert batch["labels"][0].tolist() == [IGNORED_LABEL, 0, 1] + [IGNORED_LABEL] * 13


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 9))
def test_every_epoch_reads_every_feature_once(lengths: list[int], epochs: int, batch_size: int) -> None:
    nothing = np.zeros(0, np.int64)
    features = [
        Feature(np.zeros(n, np.int64), np.zeros(n, np.int64), nothing, i, nothing, nothing)
        for i, n in enumerate(lengths)
    ]
    order = TrainingOrder(features, epochs, batch_size, seed=3)
    read = [order[i].example for i in range(len(order))]
    n = len(features)
    assert len(read) % batch_size == 0 and epochs * n <= len(read) < epochs * n + batch_size
    for epoch in range(epochs):
        assert sorted(read[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert read == [TrainingOrder(features, epochs, batch_size, seed=3)[i].example for i in range(len(order))]
