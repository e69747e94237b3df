"""`glyphcrm predict`: labels, names, masks; and what is wrong, in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from glyphcrm.answers import spans
from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.cli.entry import main
from glyphcrm.configuration import preset
from glyphcrm.finetuning.models import Reading
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import (
    GlyphCRMForPreTraining,
    GlyphCRMForSequenceClassification,
    GlyphCRMForTokenClassification,
    GlyphCRMModel,
)
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.classic import READ_ONLY, TEXT, VOCABULARY_SIZE

SHIPPED = str(Path(__file__).parents[2] / "checkpoints" / "glyphcrm-tiny")
GBK = os.fsdecode("这个问题".encode("gbk"))  # as an argument
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.fixture
def directories(model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path) -> dict[str, str]:
    """A classifier and a tagger as `finetune` keeps them, and an encoder without a head."""
    for name, head, labels in (
        ("classifier", GlyphCRMForSequenceClassification, ("bad", "good", "so-so")),
        ("tagger", GlyphCRMForTokenClassification, TAGS),
        ("headless", None, ()),
    ):
        made = model.glyphcrm
        if head is not None:
            config = type(model.config)(**model.config.to_dict())
            config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
            made = head(config)
            made.glyphcrm.load_state_dict(model.glyphcrm.state_dict())
        assert isinstance(made, GlyphCRMModel) == (head is None)
        save_checkpoint(made, tokenizer, tmp_path / name)
    return {name: str(tmp_path / name) for name in ("classifier", "tagger", "headless")}


def answers(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    assert main(["predict", "--json", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_labels_are_the_models_own(directories: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    where = directories["classifier"]
    found = answers(capsys, "--model", where, TEXT[:9], f"{TEXT[:4]}\t{TEXT[4:9]}")
    classifier = GlyphCRMForSequenceClassification.from_pretrained(where).eval()
    tokenizer = GlyphCRMTokenizer.from_pretrained(where)
    for answer, texts in zip(found, ((TEXT[:9],), (TEXT[:4], TEXT[4:9])), strict=True):
        shares = classifier(**tokenizer(*texts, return_tensors="pt")).logits[0].softmax(-1).tolist()
        expected = dict(zip(("bad", "good", "so-so"), shares, strict=True))
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert answer["label"] == max(expected, key=expected.__getitem__)
    assert main(["predict", "--model", where, TEXT[:9]]) == 0
    text, shares = capsys.readouterr().out.splitlines()
    assert text == TEXT[:9] and shares.split()[0] == found[0]["label"] and shares.count("%") == 3


def test_a_long_text_is_cut_and_that_is_said(directories: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", directories["classifier"], "天" * 200]) == 0
    assert capsys.readouterr().err == "text 1: too long: the first 64 tokens were read\n"


def test_any_character_as_likely_as_a_text_says(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = 2 ** torch.arange(len(TEXT)).clamp_max(12)
    with torch.no_grad():  # a model that knows frequencies, and nothing else
        model.mlm.decoder.weight.zero_()
        model.mlm.decoder.bias[-len(TEXT) :] = counts.log1p()
    save_checkpoint(model, tokenizer, tmp_path / "model")
    text = tmp_path / "text.txt"
    lines = [char * count for char, count in zip(TEXT, counts.tolist(), strict=True)]
    text.write_text("\n".join([*lines, READ_ONLY[2] * 10**6]), encoding="utf-8")
    asked = ("--model", str(tmp_path / "model"), "--top", "1", f"{TEXT[:3]}[MASK]")
    (found,) = answers(capsys, *asked, "--any-character", "--counts-from", str(text))
    assert found["masks"][0][0][0] == READ_ONLY[2]
    (found,) = answers(capsys, *asked, "--any-character")
    assert found["masks"][0][0][0] in TEXT
    with pytest.raises(SystemExit, match="2"):
        main(["predict", *asked, "--counts-from", str(text)])
    assert "--counts-from is for --any-character" in capsys.readouterr().err
    text.write_text("abc", encoding="utf-8")
    assert main(["predict", *asked, "--any-character", "--counts-from", str(text)]) == 2
    assert "above 0 for a character that is predicted" in capsys.readouterr().err


def test_names_are_where_the_tags_are(
    directories: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tagger = GlyphCRMForTokenClassification.from_pretrained(directories["tagger"])
    with torch.no_grad():  # so that all tags occur
        tagger.classifier.linear.weight.normal_(0, 1)
    tagger.save_pretrained(directories["tagger"])
    text = TEXT + " " + TEXT[::-1]  # longer than a window
    (answer,) = answers(capsys, "--model", directories["tagger"], text)
    names = answer["names"]
    assert isinstance(names, list) and len(names) > 3
    assert all(name["text"] == text[name["start"] : name["end"]] for name in names)
    assert all(name["label"] in ("PER", "LOC") for name in names)

    assert main(["predict", "--model", directories["tagger"], text]) == 0
    plain = capsys.readouterr().out.rstrip("\n")
    rest = plain
    for name in names:
        before, marked, rest = rest.partition(f"[{name['text']} {name['label']}]")
        assert marked and "[" not in before
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["predict", "--model", directories["tagger"], text]) == 0
    coloured = capsys.readouterr().out
    assert coloured.count("\033[0m") == len(names) and "[" not in coloured.replace("\033[", "")


def test_names_are_found_in_windows_as_long_as_in_training(
    directories: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In windows of six characters, each is read as a text by itself."""
    tagger = GlyphCRMForTokenClassification.from_pretrained(directories["tagger"])
    with torch.no_grad():
        tagger.classifier.linear.weight.normal_(0, 1)
    Reading(8).record(tagger.config)
    tagger.save_pretrained(directories["tagger"])
    pieces = [TEXT[start : start + 6] for start in range(0, 36, 6)]
    whole, *parts = answers(capsys, "--model", directories["tagger"], TEXT[:36], *pieces)

    def named(answer: dict[str, Any], begin: int = 0) -> set[tuple[int, str]]:
        spans = [(name["start"], name["end"], name["label"]) for name in answer["names"]]
        return {(begin + place, label) for start, end, label in spans for place in range(start, end)}

    assert named(whole) == set().union(*(named(part, 6 * i) for i, part in enumerate(parts))) != set()


def test_spans_of_tags() -> None:
    tags = ["O", "B-PER", "I-PER", "B-PER", "I-LOC", "I-LOC", "O", "I-PER", "B-LOC"]
    assert spans(tags) == [(1, 3, "PER"), (3, 4, "PER"), (4, 6, "LOC"), (7, 8, "PER"), (8, 9, "LOC")]


def test_masks_are_filled(capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = answers(capsys, "--model", SHIPPED, "--top", "3", "我们去北▢，他去上[MASK]。")
    masks = answer["masks"]
    assert isinstance(masks, list) and [len(row) for row in masks] == [3, 3]
    assert answer["filled"] == f"我们去北{masks[0][0][0]}，他去上{masks[1][0][0]}。"
    for row in masks:
        shares = [share for _, share in row]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1


def test_masks_are_filled_with_characters_alone(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with [UNK], however likely it is, nor with what an extended decoder still lacks."""
    model.extend_decoder(READ_ONLY[2])
    with torch.no_grad():
        model.mlm.decoder.bias[: len(SPECIAL_TOKENS)] = 2.0
    save_checkpoint(model, tokenizer, tmp_path / "model")
    (answer,) = answers(capsys, "--model", str(tmp_path / "model"), "--top", "9999", f"{TEXT[:3]}▢")
    (found,) = answer["masks"]  # type: ignore[misc]
    assert sorted(char for char, _ in found) == sorted(TEXT + READ_ONLY[2])  # type: ignore[has-type]
    assert answer["filled"][-1] == found[0][0] and 0 < sum(share for _, share in found) < 0.95  # type: ignore[index, has-type]


def test_a_bert_fills_masks_with_no_pieces_of_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor with places that its vocabulary keeps for tokens to come, nor with rows that have no token."""
    tokens = [*SPECIAL_TOKENS, "[unused1]", "天", "地", "#", "[", "##天", "##ing", "]"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertForMaskedLM(BertConfig(vocab_size=len(tokens) + 3, **sizes))
    with torch.no_grad():
        bert.cls.predictions.bias[[tokens.index(token) for token in ("[unused1]", "##天", "##ing")]] = 9.0
        bert.cls.predictions.bias[len(tokens) :] = 9.0
    save_checkpoint(bert, BertTokenizer.from_pretrained(tmp_path), tmp_path / "bert")
    (answer,) = answers(capsys, "--model", str(tmp_path / "bert"), "--top", "99", "天[MASK]")
    (found,) = answer["masks"]  # type: ignore[misc]
    assert sorted(token for token, _ in found) == sorted("天地#[]")  # type: ignore[has-type]


def test_texts_of_a_file_and_of_standard_input(
    directories: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\ufeff天地玄黄\r\n\n\u200b\n\u3000\ufeff\n宇宙洪荒\n"
    (tmp_path / "texts").write_text(lines, encoding="utf-8")
    of_file = answers(capsys, "--model", directories["classifier"], "--file", str(tmp_path / "texts"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert answers(capsys, "--model", directories["classifier"]) == of_file
    assert [answer["text"] for answer in of_file] == ["天地玄黄", "宇宙洪荒"]
    terminal = type("Terminal", (io.TextIOWrapper,), {"isatty": lambda self: True})
    monkeypatch.setattr(sys, "stdin", terminal(io.BytesIO(lines.encode())))
    assert main(["predict", "--model", directories["classifier"]]) == 0
    assert capsys.readouterr().err == "type texts, one a line; Ctrl-D ends\n"


def test_what_a_terminal_would_obey_is_not_printed(
    directories: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--model", directories["classifier"], "天\033[2J地"]) == 0
    assert capsys.readouterr().out.startswith("天·[2J地\n")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architectures": {"a": 1}}, "holds nothing, which"),
        ({"architectures": 5}, "holds nothing, which"),
        ({"architectures": [["x"]]}, "holds nothing, which"),
        ({"id2label": {"0": ["x"], "1": "y"}}, "id2label has the label"),
        ({"id2label": dict(enumerate(["O", "S-PER", "B-PER", "I-PER", "E-PER"]))}, "('S-PER', 'E-PER')"),
        ({"id2label": {i: f"LABEL_{i}" for i in range(5)}}, "give a model whose tags are O, B-x and I-x"),
        ({"reading": 5}, "reading is '5'; give max_length and truncation"),
        ({"reading": {"max_length": 10**9, "truncation": "head"}}, "max_length of reading is '1000000000'"),
        ({"reading": {"max_length": None, "truncation": "head"}}, "give a number and one of head"),
        ({"reading": {"max_length": 12, "truncation": ["head"]}}, "give a number and one of head, head+tail"),
    ],
)
def test_configurations_that_it_cannot_answer_by(
    directories: dict[str, str], capsys: pytest.CaptureFixture[str], changes: dict[str, object], complaint: str
) -> None:
    path = Path(directories["tagger"], "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "label2id": None, **changes}))
    assert main(["predict", "--model", directories["tagger"], "天 地"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {directories['tagger']}") and complaint in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("problem", "labels"),
    [(None, ["LABEL_0"]), ("regression", ["x"]), ("regression", ["x", "y"])],
)
def test_a_model_that_gives_a_number_labels_nothing(
    atlas: GlyphAtlas,
    tokenizer: GlyphCRMTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    problem: str | None,
    labels: list[str],
) -> None:
    config = preset("nano", vocab_size=VOCABULARY_SIZE)
    config.problem_type, config.id2label = problem, dict(enumerate(labels))
    save_checkpoint(GlyphCRMForSequenceClassification.from_atlas(config, atlas), tokenizer, tmp_path / "number")
    assert main(["predict", "--json", "--model", str(tmp_path / "number"), "天地"]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith(f"error: {tmp_path / 'number'}: gives a number, not labels; ask it with")
    assert error.count("\n") == 1


def test_one_label_of_several_at_once_is_an_answer(
    atlas: GlyphAtlas, tokenizer: GlyphCRMTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = preset("nano", vocab_size=VOCABULARY_SIZE)
    config.problem_type, config.id2label = "multi_label_classification", {0: "spam"}
    save_checkpoint(GlyphCRMForSequenceClassification.from_atlas(config, atlas), tokenizer, tmp_path / "model")
    (answer,) = answers(capsys, "--model", str(tmp_path / "model"), "天地")
    assert 0 < answer["probabilities"]["spam"] < 1  # type: ignore[index]


def test_a_text_is_read_whatever_the_locale(directories: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Python gives the bytes of an argument that it cannot read as surrogates: in the C locale all Chinese."""
    garbled = "天地玄黄".encode().decode("ascii", "surrogateescape")
    readable = answers(capsys, "--model", directories["classifier"], "天地玄黄")
    assert answers(capsys, "--model", directories["classifier"], garbled) == readable
    assert main(["atlas", "show", garbled]) == 0
    assert "天 U+5929 row" in capsys.readouterr().out
    assert main(["atlas", "show", GBK]) == 2
    assert "error: TEXT: not UTF-8 at byte 0; it looks like GBK" in capsys.readouterr().err
    words = ["--model", directories["classifier"], "--out", "nowhere", "--png", f"{GBK}=picture.png"]
    assert main(["atlas", "add", *words]) == 2
    assert "picture.png: not UTF-8 at byte 0; it looks like GBK" in capsys.readouterr().err


def test_a_configuration_without_return_dict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "return_dict": False}))
    assert answers(capsys, "--model", str(tmp_path / "model"), "北[MASK]") == answers(
        capsys, "--model", SHIPPED, "北[MASK]"
    )


@pytest.mark.parametrize(
    ("where", "words", "complaint"),
    [
        ("nowhere", ["天"], "no config.json there"),
        ("headless", ["天"], "holds GlyphCRMModel, which neither labels texts nor fills masks"),
        ("classifier", ["天", " "], "text 2: is empty"),
        ("classifier", ["\u200b"], "text 1: holds no character that is read"),
        ("classifier", ["天\t"], "text 1: holds no character that is read"),
        ("classifier", ["天" * 1_000_000], "text 1: more than 20,000 characters"),
        ("classifier", ["--file", "missing"], "missing: cannot be read: No such file"),
        ("classifier", ["--file", "long"], "long:2: more than 20,000 characters"),
        ("classifier", ["--file", "latin"], "latin: not UTF-8 at byte"),
        ("classifier", ["--file", "gbk"], "gbk: not UTF-8 at byte 2; it looks like GBK"),
        ("classifier", ["--file", "blank"], "no text; give one"),
        ("classifier", ["天", GBK], "text 2: not UTF-8 at byte 0; it looks like GBK"),
        (SHIPPED, ["天地"], "text 1: has no [MASK] or ▢"),
        (SHIPPED, ["▢" * 600], "text 1: 602 tokens; the model reads 512"),
    ],
)
def test_what_is_wrong_is_one_line(
    where: str,
    words: list[str],
    complaint: str,
    directories: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("long").write_text("天\n" + "地" * 1_000_000, encoding="utf-8")
    Path("gbk").write_bytes("a\n天地\n".encode("gbk"))
    Path("latin").write_bytes("天\n".encode() + b"\xe9\n")
    Path("blank").write_text("\n \n\u200b\n", encoding="utf-8")
    assert main(["predict", "--model", directories.get(where, where), *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
