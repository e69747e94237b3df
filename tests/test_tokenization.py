"""The tokenizer as a transformers tokenizer, and as the fast path of pre-training."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AddedToken, AutoTokenizer

from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.normalization import clusters, is_dropped, normalize
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.classic import READ_ONLY, TEXT

ODD = "é\u0301e\u200bz\u0304 \r\n\u3000𠮷Ａ⽇⾦⻩㈪㎡\u0323ｶﾞ\ud800\U000e0100\u1112\u1161\u11ab"
texts = st.text(st.sampled_from(TEXT + READ_ONLY + ODD + "[MASK]") | st.characters(), max_size=20)


@pytest.fixture(scope="module")
def shipped() -> GlyphCRMTokenizer:
    return GlyphCRMTokenizer.from_pretrained(Path(__file__).parents[1] / "checkpoints" / "glyphcrm-tiny")


def test_ids_are_atlas_rows(tokenizer: GlyphCRMTokenizer, atlas: GlyphAtlas) -> None:
    assert tokenizer.is_fast
    ids = tokenizer("天地 玄\u200b黄", add_special_tokens=False)["input_ids"]
    assert [atlas.tokens[i] for i in ids] == list("天地玄黄")
    assert len(tokenizer) == tokenizer.vocab_size == len(atlas)
    assert tokenizer("龘")["input_ids"][1] == atlas.rows["龘"]
    assert tokenizer("𠮷")["input_ids"][1] == tokenizer.unk_token_id


def test_pairs_truncation_padding_and_decoding(tokenizer: GlyphCRMTokenizer) -> None:
    pair = tokenizer("天地玄黄", "宇宙", padding="max_length", max_length=12, return_tensors="pt")
    assert tokenizer.decode(pair["input_ids"][0]) == "[CLS]天地玄黄[SEP]宇宙[SEP][PAD][PAD][PAD]"
    assert pair["token_type_ids"][0].tolist() == [0] * 6 + [1] * 3 + [0] * 3
    assert pair["attention_mask"][0].tolist() == [1] * 9 + [0] * 3
    left = tokenizer("天", padding="max_length", max_length=5, padding_side="left")
    assert tokenizer.decode(left["input_ids"]) == "[PAD][PAD][CLS]天[SEP]"
    cut = tokenizer(TEXT * 20, truncation=True)["input_ids"]
    assert len(cut) == tokenizer.model_max_length == 512
    assert tokenizer.decode(cut[:5], skip_special_tokens=True) == TEXT[:4]
    assert tokenizer.encode("天[MASK]玄")[2] == tokenizer.mask_token_id


def test_ids_that_are_no_row_decode_to_the_unknown_token(tokenizer: GlyphCRMTokenizer) -> None:
    row = tokenizer.get_vocab()["天"]
    assert tokenizer.decode([-100, row, -1, 999_999, 2**40]) == "[UNK]天[UNK][UNK][UNK]"
    assert tokenizer.decode(np.array([row, -100]), skip_special_tokens=True) == "天"
    assert tokenizer.batch_decode([[-100], [row]]) == ["[UNK]", "天"]
    assert tokenizer.convert_ids_to_tokens([-100, row, 999_999]) == ["[UNK]", "天", "[UNK]"]
    assert tokenizer.convert_ids_to_tokens(-1) == tokenizer.decode(999_999) == "[UNK]"


@given(texts)
def test_ids_are_those_of_the_fast_path_whatever_else_is_asked_for(tokenizer: GlyphCRMTokenizer, text: str) -> None:
    ids = tokenizer.encode_characters(text)
    assert ids.dtype == np.int32
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    assert plain["input_ids"] == ids.tolist()
    for special in (False, True):
        plain = tokenizer(text, split_special_tokens=special)
        located = tokenizer(text, split_special_tokens=special, return_offsets_mapping=True)
        assert located["input_ids"] == plain["input_ids"]
        assert len(located["offset_mapping"]) == len(located["input_ids"])
        words = [text[start:end] for start, end in clusters(text)]
        by_word = tokenizer(words, is_split_into_words=True, split_special_tokens=True)
        with_offsets = tokenizer(
            words, is_split_into_words=True, split_special_tokens=True, return_offsets_mapping=True
        )
        assert by_word["input_ids"] == with_offsets["input_ids"]
        assert by_word["input_ids"] == tokenizer(text, split_special_tokens=True)["input_ids"]


@given(texts.filter(lambda text: "[" not in text), texts)
def test_offsets_are_those_of_clusters_and_local(tokenizer: GlyphCRMTokenizer, text: str, more: str) -> None:
    located = tokenizer(text, return_offsets_mapping=True)
    offsets = located["offset_mapping"]
    assert offsets[0] == offsets[-1] == (0, 0)
    assert list(dict.fromkeys(offsets[1:-1])) == clusters(text)
    for i, (start, end) in zip(located["input_ids"][1:-1], offsets[1:-1], strict=True):
        assert i in tokenizer.encode_characters(text[start:end])
    longer = tokenizer(text + "中" + more, text, return_offsets_mapping=True, return_tensors="np")
    count = len(offsets) - 1
    assert longer["offset_mapping"][0, :count].tolist() == list(map(list, offsets[:count]))
    assert longer["offset_mapping"][0, -count:-1].tolist() == list(map(list, offsets[1:count]))


def test_offsets_take_in_accents_in_batches_words_and_overflow(tokenizer: GlyphCRMTokenizer) -> None:
    assert tokenizer("叫z\u0304a", return_offsets_mapping=True)["offset_mapping"][2:-1] == [(1, 3), (1, 3), (3, 4)]
    batch = tokenizer(
        ["天 地", "e\u0301"], ["黄", "宇宙洪"], padding=True, return_offsets_mapping=True, return_tensors="np"
    )
    assert batch["offset_mapping"].shape == (*batch["input_ids"].shape, 2)
    assert batch["offset_mapping"][0, :5].tolist() == [[0, 0], [0, 1], [2, 3], [0, 0], [0, 1]]
    assert batch["offset_mapping"][1, :4].tolist() == [[0, 0], [0, 2], [0, 0], [0, 1]]
    assert (batch["offset_mapping"][batch["attention_mask"] == 0] == 0).all()
    lists = tokenizer([["天 地", "黄"], ("e\u0301", "宇宙洪")], return_offsets_mapping=True)
    assert [row[:5] for row in lists["offset_mapping"]] == [
        [(0, 0), (0, 1), (2, 3), (0, 0), (0, 1)], [(0, 0), (0, 2), (0, 0), (0, 1), (1, 2)]
    ]  # fmt: skip
    words = tokenizer([["天", "ae\u0301b"], ["地"]], is_split_into_words=True, return_offsets_mapping=True)
    assert words["offset_mapping"][0] == [(0, 0), (0, 1), (0, 1), (1, 3), (3, 4), (0, 0)]
    assert words.word_ids(0) == [None, 0, 1, 1, 1, None]
    # The texts of questions and contexts, cut with a stride: every token of a piece is found in its own context.
    contexts = ["天地e\u0301玄黄宇宙洪荒", "日月"]
    pieces = tokenizer(
        ["地", "天"], contexts, max_length=8, truncation="only_second", stride=2, padding="max_length",
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert pieces["overflow_to_sample_mapping"] == [0, 0, 0, 0, 1]
    for i, sample in enumerate(pieces["overflow_to_sample_mapping"]):
        for token, part, (start, end) in zip(
            pieces.tokens(i), pieces.sequence_ids(i), pieces["offset_mapping"][i], strict=True
        ):
            assert part != 1 or token in (contexts[sample][start:end], "[UNK]")
            assert part != 1 or normalize(contexts[sample][start:end]) != "e"


@given(first=texts, second=texts, returned=st.sampled_from([None, "np", "pt"]))
@example(first="叫Rene\u0301", second="か\u3099e\u200b\u0301z\u0304", returned=None)
def test_lookups_agree_with_offsets(
    tokenizer: GlyphCRMTokenizer, first: str, second: str, returned: str | None
) -> None:
    """Of a token the range is that of offset_mapping; of each code point in it the first token with that range."""
    asked = tokenizer(first, second, return_offsets_mapping=True, return_tensors=returned)
    ranges = asked["offset_mapping"] if returned is None else asked["offset_mapping"][0].tolist()
    ranges = [tuple(pair) for pair in ranges]
    unasked = tokenizer(first, second)
    assert "offset_mapping" not in unasked
    for encoding in (asked, unasked, pickle.loads(pickle.dumps(asked)), asked.to("cpu")):
        for part, text in enumerate((first, second)):
            tokens = [i for i, found in enumerate(encoding.sequence_ids()) if found == part]
            assert [tuple(encoding.token_to_chars(i)) for i in tokens] == [ranges[i] for i in tokens]
            for place in range(len(text)):
                holds = next((i for i in tokens if ranges[i][0] <= place < ranges[i][1]), None)
                assert encoding.char_to_token(place, sequence_index=part) == holds
                word = encoding.char_to_word(place, sequence_index=part)
                assert word == (None if holds is None else encoding.word_ids()[holds])
                span = None if word is None else encoding.word_to_chars(word, sequence_index=part)
                assert span is None or span.start <= place < span.end


def test_words_and_characters_of_tokens(tokenizer: GlyphCRMTokenizer) -> None:
    encoding = tokenizer("天 地玄")
    assert encoding.word_ids() == [None, 0, 1, 2, None]
    assert [encoding.char_to_token(i) for i in range(4)] == [1, None, 2, 3]
    assert [encoding.token_to_chars(i).start for i in (1, 2, 3)] == [0, 2, 3]

    # As the course of Hugging Face carries tags over to tokens.
    words, tags = ["天地", "\u3000", "e\u0301", "[MASK]", "黄"], [1, 2, 3, 4, 5]
    encoding = tokenizer(words, is_split_into_words=True, truncation=True)
    labels = [-100 if word is None else tags[word] for word in encoding.word_ids()]
    assert labels == [-100, 1, 1, 3, 4, 5, -100]
    letters = tokenizer(list("[MASK]"), is_split_into_words=True)
    assert tokenizer.mask_token_id not in letters["input_ids"]


def test_compatibility_forms_are_read_as_what_has_rows(
    tokenizer: GlyphCRMTokenizer, shipped: GlyphCRMTokenizer
) -> None:
    assert shipped.decode(shipped("⼈⼯智能是⽅⾯的⼀个重要问题")["input_ids"][1:-1]) == "人工智能是方面的一个重要问题"
    encoding = shipped("㎡\u0301⻔㈱", return_offsets_mapping=True)
    assert encoding.tokens()[1:-1] == ["m", "2", "[UNK]", "门", "(", "株", ")"]
    assert encoding["offset_mapping"][1:-1] == [(0, 2), (0, 2), (0, 2), (2, 3), (3, 4), (3, 4), (3, 4)]
    # The small vocabulary has 日 金 黄; it has no row for what is read so.
    assert tokenizer.tokenize("⽇⾦⻩⼈") == ["日", "金", "黄", "[UNK]"]
    # What has a row of its own keeps it, and full-width forms are characters.
    for char in ("①", "Ａ", "："):
        assert char in shipped.get_vocab() and shipped.tokenize(char) == [char]


def test_voiced_half_width_kana_are_one_kana(tmp_path: Path) -> None:
    kana = GlyphCRMTokenizer.from_tokens([*SPECIAL_TOKENS, *"カガキ"], tmp_path)
    encoding = kana("ｶﾞｷ", return_offsets_mapping=True)
    assert encoding.tokens() == ["[CLS]", "ガ", "キ", "[SEP]"]
    assert encoding["offset_mapping"][1:-1] == [(0, 2), (2, 3)]
    assert kana.encode_characters("ｶﾞｷ").tolist() == encoding["input_ids"][1:-1]


def test_a_vocabulary_that_lacks_nothing_has_no_stand_ins(tmp_path: Path) -> None:
    everything = [chr(point) for point in range(0x21, 0x20000) if not is_dropped(chr(point)) and point >> 11 != 27]
    rich = GlyphCRMTokenizer.from_tokens([*SPECIAL_TOKENS, *everything], tmp_path)
    text = "⼈ｶﾞ㎡e\u0301"
    assert rich.tokenize(text) == list(normalize(text))
    assert rich.encode_characters(text).tolist() == rich(text)["input_ids"][1:-1]


def test_it_is_saved_whole_and_loaded_by_the_auto_class(tokenizer: GlyphCRMTokenizer, tmp_path: Path) -> None:
    first, second, old = tmp_path / "first", tmp_path / "second", tmp_path / "old"
    tokenizer.save_pretrained(first)
    tokenizer("天地", truncation=True, max_length=3, padding="max_length")
    tokenizer.save_pretrained(second)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), "what was asked for last is saved"
    old.mkdir()  # as they were saved before there was a tokenizer.json
    (old / "vocab.txt").write_bytes((first / "vocab.txt").read_bytes())
    settings = {"backend": "custom", "tokenizer_class": "GlyphCRMTokenizer", "model_max_length": 64}
    tokens = {i: AddedToken(token, special=True).__getstate__() for i, token in enumerate(SPECIAL_TOKENS)}
    (old / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": tokens}))
    text, pair = "天[MASK]龘⽇e\u0301 𠮷", "黄"
    expected = tokenizer(text, pair, return_offsets_mapping=True)
    for directory in (first, old):
        (directory / "config.json").write_text('{"model_type": "glyphcrm"}')
        loaded = AutoTokenizer.from_pretrained(directory)
        assert type(loaded) is GlyphCRMTokenizer
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded(text, pair, return_offsets_mapping=True) == expected
    assert loaded.model_max_length == 64
    # Other programs read tokenizer.json alone.
    assert Tokenizer.from_file(str(first / "tokenizer.json")).encode(text, pair).ids == expected["input_ids"]


def test_added_tokens_are_kept(tokenizer: GlyphCRMTokenizer, tmp_path: Path) -> None:
    tokenizer = pickle.loads(pickle.dumps(tokenizer))
    tokenizer.add_tokens(["天地", AddedToken("玄", single_word=True)])
    for text in ("天地玄黄", "玄 玄黄", "地玄"):
        assert tokenizer(text)["input_ids"] == tokenizer(text, return_offsets_mapping=True)["input_ids"]
    new = tokenizer.convert_tokens_to_ids("天地")
    assert new == tokenizer.vocab_size == len(tokenizer) - 1
    assert tokenizer.decode(tokenizer("黄天地")["input_ids"]) == "[CLS]黄天地[SEP]"
    tokenizer.save_pretrained(tmp_path)
    for copy in (GlyphCRMTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy("黄天地天")["input_ids"] == tokenizer("黄天地天")["input_ids"] and new in copy("天地")["input_ids"]


def test_threads_share_a_tokenizer(tokenizer: GlyphCRMTokenizer) -> None:
    def read(length: int) -> list[list[int]]:
        text = TEXT[:length]
        return [
            tokenizer(text, padding="max_length", max_length=length + 9, truncation=True)["input_ids"]
            for _ in range(99)
        ]

    with ThreadPoolExecutor(8) as pool:
        for length, rows in enumerate(pool.map(read, range(40))):
            assert all(len(row) == length + 9 and row.count(0) == 7 for row in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("天\n地\n".encode(), "first lines must be"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n天\n地\n天\n".encode(), "txt:8: '天' stands there a second time"),
        (b"[PAD]\n\xff", "not UTF-8 at byte 6"),
        (bytes(1 << 25), "larger than 16 MiB"),
        (None, "No such file"),
    ],
)
def test_a_bad_vocabulary_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        GlyphCRMTokenizer(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "{", "JSONDecodeError"),
        ("tokenizer_config.json", "[]", "no tokenizer that can be read"),
        ("tokenizer_config.json", '{"model_max_length": {}}', "model_max_length: '{}'; give a number"),
        ("tokenizer_config.json", '{"model_max_length": 0}', "model_max_length: '0'"),
        ("tokenizer_config.json", '{"unk_token": "𠮷"}', "give different tokens of vocab.txt"),
        ("tokenizer_config.json", '{"cls_token": 7}', "no tokenizer that can be read|give different tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 7}', "no tokenizer that can be read"),
        ("tokenizer_config.json", '{"tokenizer_object": {}, "gguf_file": "x", "vocab": {}}', None),
        ("tokenizer.json", "{", "JSONDecodeError"),
        ("tokenizer.json", '{"added_tokens": []}', None),
        ("tokenizer.json", " " * ((1 << 26) + 1), "larger than 64 MiB"),
        ("vocab.txt", None, "no vocab.txt|vocab.txt"),
    ],
)
def test_damaged_files_are_one_line(
    name: str, content: str | None, message: str | None, tokenizer: GlyphCRMTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    if message is None:
        assert GlyphCRMTokenizer.from_pretrained(tmp_path)("天⽇") == tokenizer("天⽇")
        return
    with pytest.raises((UserError, OSError), match=message) as caught:
        GlyphCRMTokenizer.from_pretrained(tmp_path)
    assert content is None or ("\n" not in str(caught.value) and isinstance(caught.value, UserError))
