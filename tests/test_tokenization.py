"""The tokenizer as a transformers tokenizer, and as the fast path of pre-training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizer

from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.normalization import normalize
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import READ_ONLY, TEXT

texts = st.text(st.sampled_from(TEXT + READ_ONLY + "é\u0301e\u200b \r\n\u3000𠮷Ａ[MASK]"), max_size=20)


def test_ids_are_atlas_rows(tokenizer: GlyphCRMTokenizer, atlas: GlyphAtlas) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizer)
    ids = tokenizer("天地 玄\u200b黄", add_special_tokens=False)["input_ids"]
    assert [atlas.tokens[i] for i in ids] == list("天地玄黄")
    assert len(tokenizer) == len(atlas)
    assert tokenizer("龘")["input_ids"][1] == atlas.rows["龘"]
    assert tokenizer("𠮷")["input_ids"][1] == tokenizer.unk_token_id


def test_pairs_truncation_padding_and_decoding(tokenizer: GlyphCRMTokenizer) -> None:
    pair = tokenizer("天地玄黄", "宇宙", padding="max_length", max_length=12, return_tensors="pt")
    assert tokenizer.decode(pair["input_ids"][0]) == "[CLS]天地玄黄[SEP]宇宙[SEP][PAD][PAD][PAD]"
    assert pair["token_type_ids"][0].tolist() == [0] * 6 + [1] * 3 + [0] * 3
    assert pair["attention_mask"][0].tolist() == [1] * 9 + [0] * 3
    cut = tokenizer(TEXT * 20, truncation=True)["input_ids"]
    assert len(cut) == tokenizer.model_max_length == 512
    assert tokenizer.decode(cut[:5], skip_special_tokens=True) == TEXT[:4]
    assert tokenizer.encode("天[MASK]玄")[2] == tokenizer.mask_token_id


@given(texts)
def test_offsets_carry_tags_of_characters(tokenizer: GlyphCRMTokenizer, text: str) -> None:
    plain = tokenizer(text)
    located = tokenizer(text, return_offsets_mapping=True)
    assert located["input_ids"] == plain["input_ids"]
    assert located["offset_mapping"][0] == located["offset_mapping"][-1] == (0, 0)
    for i, (start, end) in zip(located["input_ids"][1:-1], located["offset_mapping"][1:-1], strict=True):
        token = tokenizer.tokens[i]
        assert token == text[start:end] or token in normalize(text[start:end]) or token == "[UNK]"
    words = tokenizer([*text] or ["天"], is_split_into_words=True, return_offsets_mapping=True)
    if text and "[MASK]" not in text and text == normalize(text):
        assert words["offset_mapping"] == located["offset_mapping"]


def test_offsets_of_batches_and_pairs_are_padded(tokenizer: GlyphCRMTokenizer) -> None:
    batch = tokenizer(["天 地", "玄"], ["黄", "宇宙洪"], padding=True, return_offsets_mapping=True, return_tensors="np")
    assert batch["offset_mapping"].shape == (*batch["input_ids"].shape, 2)
    assert batch["offset_mapping"][0, :5].tolist() == [[0, 0], [0, 1], [2, 3], [0, 0], [0, 1]]
    assert (batch["offset_mapping"][batch["attention_mask"] == 0] == 0).all()


@given(texts.filter(lambda text: "[" not in text))
def test_the_fast_path_gives_the_same_ids(tokenizer: GlyphCRMTokenizer, text: str) -> None:
    ids = tokenizer.encode_characters(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_it_is_saved_whole_and_loaded_by_the_auto_class(tokenizer: GlyphCRMTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "glyphcrm"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is GlyphCRMTokenizer
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("天[MASK]龘", "黄") == tokenizer("天[MASK]龘", "黄")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("天\n地\n".encode(), "first lines must be"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n天\n地\n天\n".encode(), "txt:8: '天' stands there a second time"),
        (b"[PAD]\n\xff", "not UTF-8 at byte 6"),
        (None, "No such file"),
    ],
)
def test_a_bad_vocabulary_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        GlyphCRMTokenizer(path)
