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
from glyphcrm.finetuning.prediction import assemble
from glyphcrm.finetuning.training_order import TrainingOrder
from glyphcrm.tasks import Kind, TaggedExample, TextExample
from glyphcrm.tokenization import GlyphCRMTokenizer

TAGS = ("O", "B-PER", "I-PER")
# A mark in, white space, a combining accent, a letter that is composed with it, a ligature that NFC takes apart.
ODD = "天地玄。，！ \t\u3000\u200be\u0301龘\ufb1d𠮷A"


@pytest.fixture(params=["glyphcrm", "pieces"])
def any_tokenizer(
    request: pytest.FixtureRequest, tokenizer: GlyphCRMTokenizer, bert_tokenizer: BertTokenizer
) -> PreTrainedTokenizerBase:
    return tokenizer if request.param == "glyphcrm" else bert_tokenizer


@settings(deadline=None)
@given(characters=st.text(ODD, min_size=1, max_size=40), data=st.data())
def test_tags_survive_cutting_and_gluing(
    characters: str, data: st.DataObject, tokenizer: GlyphCRMTokenizer, bert_tokenizer: BertTokenizer
) -> None:
    tags = tuple(data.draw(st.lists(st.sampled_from(TAGS), min_size=len(characters), max_size=len(characters))))
    example = TaggedExample(tuple(characters), tags)
    for reader in (tokenizer, bert_tokenizer):
        features = encode(reader, [example], Kind.TAGGING, TAGS, max_length=12)
        assert all(len(feature) <= 12 for feature in features)
        assert all((feature.labels[feature.positions] != IGNORED_LABEL).all() for feature in features)
        assert sum((feature.labels != IGNORED_LABEL).sum() for feature in features) == sum(map(_tokens, features))
        # A model that is always right: what has a token gets its tag back, all else is outside.
        right = [feature.labels[feature.positions] for feature in features]
        (predicted,) = assemble(features, right, [example], Kind.TAGGING, TAGS)
        seen = {int(character) for feature in features for character in feature.characters}
        assert predicted == tuple(tag if i in seen else "O" for i, tag in enumerate(tags))
        assert all(i in seen for i, character in enumerate(characters) if character in "天地玄。，！龘𠮷A")


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


@pytest.mark.parametrize("pair", [None, "宇宙洪荒日月"])
def test_texts_are_what_the_tokenizer_itself_makes_of_them(
    any_tokenizer: PreTrainedTokenizerBase, pair: str | None
) -> None:
    kind = Kind.SENTENCE if pair is None else Kind.PAIR
    for max_length in (8, 64):
        (feature,) = encode(any_tokenizer, [TextExample("天地玄黄宇宙洪荒", "b", pair)], kind, ("a", "b"), max_length)
        expected = any_tokenizer("天地玄黄宇宙洪荒", pair, truncation="longest_first", max_length=max_length)
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
