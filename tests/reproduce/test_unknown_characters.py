"""What vocabularies do not know, against counts made by hand and by the real tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from glyphcrm.errors import UserError
from glyphcrm.normalization import normalize
from glyphcrm.reproduce.unknown_characters import beyond, count_unknown, unknown_to_bert
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import READ_ONLY, TEXT, VOCABULARY_SIZE

BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "天", "地", "a", "##a", "，", "あ"]


@pytest.fixture(scope="module")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(BERT_TOKENS) + "\n", encoding="utf-8")
    return path


def test_counts() -> None:
    texts = ["天天 玄龘\n", "A，", "龘龘𠮷", "", "天"]
    (found,) = count_unknown("made up", texts, {"few": lambda char: char not in "天玄A"})
    assert found == {
        "data_set": "made up",
        "vocabulary": "few",
        "texts": 5,
        "tokens": 10,
        "characters": 6,
        "unknown_tokens": 5,
        "unknown_characters": 3,
        "texts_with_unknown": 3,
        "unknown_token_share": 0.5,
        "unknown_text_share": 0.6,
    }
    assert json.loads(json.dumps(found, ensure_ascii=False)) == found


def test_no_texts() -> None:
    (found,) = count_unknown("empty", iter(()), {"any": lambda char: True})
    assert [found[name] for name in ("tokens", "unknown_token_share", "unknown_text_share")] == [0, 0, 0]


def test_each_character_is_asked_about_once() -> None:
    asked: list[str] = []

    def is_unknown(char: str) -> bool:
        asked.append(char)
        return True

    count_unknown("made up", ["天地天", "地天玄"] * 3, {"any": is_unknown})
    assert sorted(asked) == sorted("天地玄")


def test_berts_tokenizer_decides(vocabulary_file: Path) -> None:
    is_unknown = unknown_to_bert(vocabulary_file)
    # Case and accents are folded; private use is dropped; both are what transformers does.
    assert {char: is_unknown(char) for char in "天玄aAàb，。あ𠮷\ue000"} == {
        **dict.fromkeys("天aAà，あ\ue000", False),
        **dict.fromkeys("玄b。𠮷", True),
    }


@given(text=st.text(st.sampled_from("天地玄黄龘，。𠮷"), min_size=1, max_size=30))
def test_bert_counts_are_those_of_its_tokenizer_on_whole_texts(vocabulary_file: Path, text: str) -> None:
    # Of Han and punctuation alone, which stand as words of their own.
    tokenizer = BertTokenizer(str(vocabulary_file))
    (found,) = count_unknown("drawn", [text], {"bert": unknown_to_bert(vocabulary_file)})
    assert found["unknown_tokens"] == tokenizer.tokenize(text).count("[UNK]")


@given(text=st.text(st.sampled_from(TEXT + READ_ONLY + "的🀀 A\u0301"), max_size=60))
def test_our_counts_are_those_of_ids(tokenizer: GlyphCRMTokenizer, text: str) -> None:
    vocabularies = {
        "read": beyond(tokenizer, tokenizer.vocab_size),
        "predict": beyond(tokenizer, VOCABULARY_SIZE),
    }
    read, predict = count_unknown("drawn", [text], vocabularies)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert read["tokens"] == predict["tokens"] == len(ids) == len(normalize(text))
    assert read["unknown_tokens"] == sum(i == tokenizer.unk_token_id for i in ids)
    assert predict["unknown_tokens"] == sum(i == tokenizer.unk_token_id or i >= VOCABULARY_SIZE for i in ids)


def test_what_is_read_as_its_compatibility_form_is_known(tokenizer: GlyphCRMTokenizer) -> None:
    is_unknown = beyond(tokenizer, tokenizer.vocab_size)
    assert {char: is_unknown(char) for char in "⽇⾦⻩⼈㎡"} == {
        **dict.fromkeys("⽇⾦⻩", False),  # 日 金 黄, of the vocabulary
        **dict.fromkeys("⼈㎡", True),
    }
    (found,) = count_unknown("made up", ["天⽇⼈"], {"read": is_unknown})
    ids = tokenizer("天⽇⼈", add_special_tokens=False)["input_ids"]
    assert found["unknown_tokens"] == ids.count(tokenizer.unk_token_id) == 1


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes("天\n".encode("utf-16")), "not UTF-8 at byte 0"),
        (lambda path: path.write_text("[PAD]\n天\n", encoding="utf-8"), r"no line \[UNK\]"),
        (lambda path: path.write_bytes(bytes(1 << 27)), "longer than 64 MiB"),
    ],
)
def test_files_that_are_no_vocabulary_are_refused(
    tmp_path: Path, make: Callable[[Path], object], complaint: str
) -> None:
    path = tmp_path / "vocab.txt"
    make(path)
    with pytest.raises(UserError, match=f"vocab.txt: .*{complaint}") as caught:
        unknown_to_bert(path)
    assert "\n" not in str(caught.value)
