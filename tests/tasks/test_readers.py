from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.errors import UserError
from glyphcrm.normalization import normalize
from glyphcrm.tasks.examples import TaggedExample, TextExample
from glyphcrm.tasks.readers import Columns, read_bio, read_columns, read_csv, read_json_lines

NAMED = Columns("text", "label", "pair")
FORMATS = {"tsv": read_columns, "csv": read_csv, "jsonl": read_json_lines}
texts = st.text(st.sampled_from("中文𠮷é \"',:{}\\\u2028\u3000a1\n\t")).filter(normalize)
labels = st.sampled_from(["0", "1", "好评", '"', "a, b"])


def written(ending: str, rows: list[tuple[str, str, str]]) -> tuple[str, list[int]]:
    """The file, and the lines on which its rows begin."""
    if ending == "tsv":
        return "\n".join(["label\tid\tpair\ttext", *(f"{label}\t7\t{b}\t{a}" for a, b, label in rows)]), []
    if ending == "jsonl":
        return "\n".join(json.dumps({"id": 7, "label": label, "pair": b, "text": a}) for a, b, label in rows), []
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["text", "id", "label", "pair"])
    starts = []
    for a, b, label in rows:
        starts.append(sink.getvalue().count("\n") + 1)
        writer.writerow([a, 7, label, b])
    return sink.getvalue(), starts


@given(
    ending=st.sampled_from(list(FORMATS)),
    rows=st.lists(st.tuples(texts, texts, labels), min_size=1, max_size=6),
    bom=st.booleans(),
    crlf=st.booleans(),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, ending: str, rows: list[tuple[str, str, str]], bom: bool, crlf: bool
) -> None:
    if ending == "tsv":
        rows = [(a.translate({9: " ", 10: "_"}), b.translate({9: " ", 10: "_"}), label) for a, b, label in rows]
        rows = [row for row in rows if normalize(row[0]) and normalize(row[1])] or [("一", "二", "0")]
    content, starts = written(ending, rows)
    path = tmp_path_factory.mktemp("rows") / f"rows.{ending}"
    path.write_bytes(b"\xef\xbb\xbf" * bom + content.replace("\n", "\r\n" if crlf else "\n").encode() + b"\n\n")
    starts = starts or [i + (1 if ending == "jsonl" else 2) for i in range(len(rows))]
    read = FORMATS[ending](path, NAMED)
    assert read == [
        TextExample(a, label, b, f"{path}:{line}") for (a, b, label), line in zip(rows, starts, strict=True)
    ]


def test_numbered_columns_mean_no_header(tmp_path: Path) -> None:
    path = tmp_path / "titles.txt"
    path.write_text('"《西游记》_!_1_!_\n他说"好_!_0_!_词,词\n', encoding="utf-8")
    assert read_columns(path, Columns(0, 1), {"0": "no", "1": "yes"}, "_!_") == [
        TextExample('"《西游记》', "yes", None, f"{path}:1"),
        TextExample('他说"好', "no", None, f"{path}:2"),
    ]


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff")
tags = st.sampled_from(["O", "B-PER", "I-PER", "I-x"])


@given(
    st.lists(st.lists(st.tuples(characters, tags), min_size=1, max_size=8), min_size=1, max_size=5),
    st.sampled_from("\t "),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 3),
)
def test_tagged_sentences_are_read(
    tmp_path_factory: pytest.TempPathFactory,
    sentences: list[list[tuple[str, str]]],
    separator: str,
    end: str,
    blank: int,
) -> None:
    path = tmp_path_factory.mktemp("bio") / "a.bio"
    lines = [end.join(f"{char}{separator}{tag}" for char, tag in sentence) for sentence in sentences]
    path.write_bytes((end * (blank + 1)).join(lines).encode())
    read = read_bio(path)
    assert [list(zip(example.characters, example.tags, strict=True)) for example in read] == sentences
    all_lines = path.read_bytes().decode().split("\n")
    for example in read:
        number = int(example.where.rpartition(":")[2])
        block = [line.removesuffix("\r") for line in all_lines[number - 1 : number - 1 + len(example.tags)]]
        assert block == [f"{c}{separator}{t}" for c, t in zip(example.characters, example.tags, strict=True)]


def test_a_last_sentence_without_line_end_and_many_equal_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n" + "中\tB-LOC\n国\tI-LOC\n\n" * 3 + "中\tB-LOC", encoding="utf-8")
    country = ("中", "国"), ("B-LOC", "I-LOC")
    assert read_bio(path) == [
        *(TaggedExample(*country, f"{path}:{line}") for line in (3, 6, 9)),
        TaggedExample(("中",), ("B-LOC",), f"{path}:12"),
    ]


def test_a_line_may_hold_several_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.bio"
    lines = ["1998 B-TIME", "NBA\tB-ORG", "New York\tB-LOC", "  O", "\t\tO", "\U0001f1e8\U0001f1f3 O", "京 O"]
    path.write_text("\n".join(lines) + "\n\ufeff\n\ufeff中\tB-LOC\n\u200b\n国\tO\n", encoding="utf-8")
    first, second, third = read_bio(path)
    assert first.characters == ("1998", "NBA", "New York", " ", "\t", "\U0001f1e8\U0001f1f3", "京")
    assert first.tags == ("B-TIME", "B-ORG", "B-LOC", "O", "O", "O", "O")
    # Byte order marks come with files that were joined.
    assert (second.text, second.where) == ("\ufeff中", f"{path}:9")
    assert (third.text, third.where) == ("国", f"{path}:11")


def test_tags_and_labels_differ_only_by_what_can_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.bio"
    path.write_text("中\tB-PER\u200b\n国\tI-\u00adPER\n\n京 B-cafe\u0301 \n", encoding="utf-8")
    first, second = read_bio(path)
    assert first.tags == ("B-PER", "I-PER") and second.tags == ("B-caf\u00e9",)
    assert first.spellings == (("B-PER\u200b", "B-PER"), ("I-\u00adPER", "I-PER"))
    path.write_text("\ufefftext\tlabel\n一\t\ufeff1 \n二\t 1\n三\t a\u00a0b\u200b\n", encoding="utf-8")
    examples = read_columns(path, Columns("text", "label"))
    assert [example.label for example in examples] == ["1", "1", "a b"]
    assert [example.spellings for example in examples] == [(("\ufeff1", "1"),), (), (("a\u00a0b\u200b", "a b"),)]
    assert read_columns(path, Columns("text", "label"), {"1": "yes", "a b": "no"})[0].label == "yes"


def tsv(path: Path) -> object:
    return read_columns(path, Columns("text", "label"), {"0": "no", "1": "yes"})


def bare(path: Path) -> object:
    return read_columns(path, Columns(0, 2))


def table(path: Path) -> object:
    return read_csv(path, Columns("text", "label"))


def objects(path: Path) -> object:
    return read_json_lines(path, Columns("text", "label"))


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (tsv, "", "a: no rows"),
        (tsv, "text\tlabel\n\n", "a: no examples"),
        (tsv, "text,label\n一,0\n", "a:1: 1 column separated by tabs, and none is named 'text'"),
        (tsv, "text\tstars\n一\t0\n", "a:1: 2 columns separated by tabs, and none is named 'label'"),
        (tsv, "text\tlabel\n一\t0\n二 1\n", "a:3: 1 column, expected 2 separated by tabs"),
        (tsv, "text\tlabel\n一\t0\n\n二\t1\t3\n", "a:4: 3 columns, expected 2 separated by tabs"),
        (tsv, "text\tlabel\n一\t0\n \u3000\u200b\t1\n", "a:3: empty text"),
        (tsv, "text\tlabel\n一\t \n", "a:2: empty label"),
        (tsv, "text\tlabel\n一\t0\n二\t" + "2" * 1000, r"a:3: unknown label '2{40}…'; known are '0', '1'$"),
        (bare, "一\t0\n", "a:1: 2 columns, expected at least 3 separated by tabs"),
        (table, "text,label\n一,0\n二\t1\n", "a:3: 1 column, expected 2 separated by commas"),
        (table, "text,label\n一,0\n,\n", "a:3: empty text"),
        (table, 'text,label\n一,0\n"二\n三,1\n四,0\n', "a:3: not comma-separated values"),
        (table, 'text,label\n"一\n一",0\n"二"三,1\n', "a:4: not comma-separated values"),
        (objects, '{"text": "一", "label": 0}\n{"text"\n', "a:2: not JSON"),
        (objects, "[" * 100_000, "a:1: not JSON"),
        (objects, '["一", "0"]', "a:1: a JSON list, not an object with 'text', 'label'"),
        (
            objects,
            '{"text": "一", "label": 0}\n{"text": "一", "stars": 0}',
            "a:2: no key 'label'; the keys are",
        ),
        (objects, '{"text": 5.5, "label": 0}', "a:1: 'text' is float, not a string"),
        (objects, '{"text": "一", "label": true}', "a:1: 'label' is bool, not a string"),
        (objects, '{"text": "\\ud800一", "label": "0"}', "a:1: 'text' holds half of a surrogate pair"),
        (objects, '{"text": "\\n", "label": "0"}', "a:1: empty text"),
        (read_bio, "\n\n", "a: no examples"),
        (read_bio, "中\tB-LOC\n中 国 B-LOC\n", "a:2: 3 columns in '中 国 B-LOC', expected 2"),
        (read_bio, "中\tB-LOC\n中国\tE-LOC\n", "a:2: 'E-LOC' is no BIO tag"),
        (read_bio, "中\tB-LOC\n\tO\n", "a:2: no character before 'O'"),
        (read_bio, "中\tB-LOC\n国\n", "a:2: 1 column in '国', expected 2"),
        (read_bio, "中\tB-LOC\tns\n", "a:1: 3 columns"),
        (read_bio, "中,B-LOC\n", "a:1: 1 column"),
        (read_bio, "中\tB-LOC\n国\tE-LOC\n", "a:2: 'E-LOC' is no BIO tag"),
        (read_bio, "中\tB-\n", "a:1: 'B-' is no BIO tag"),
        (read_bio, "中\tB-LOC\n国\t\n", "a:2: '' is no BIO tag"),
    ],
)
def test_mistakes_are_one_line_with_their_place(
    tmp_path: Path, read: Callable[[Path], object], content: str, message: str
) -> None:
    path = tmp_path / "a"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize("read", [tsv, bare, table, objects, read_bio])
def test_what_is_no_utf8_is_located(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b" \n   \n" + "天\t1\n".encode("gbk"))
    with pytest.raises(UserError, match=r"a: not UTF-8 at byte 6; .*GB18030"):
        read(path)
    with pytest.raises(UserError, match="missing"):
        read(tmp_path / "missing")


@pytest.mark.parametrize("read", [tsv, table])
def test_a_field_may_be_as_long_as_a_document(tmp_path: Path, read: Callable[[Path], list[TextExample]]) -> None:
    path = tmp_path / "a"
    long, separator = "中文" * 100_000, "," if read is table else "\t"
    path.write_text(
        "\n".join(f"{text}{separator}{label}" for text, label in (("text", "label"), (long, "1"))), encoding="utf-8"
    )
    assert [example.text for example in read(path)] == [long]


def test_lines_of_zero_width_are_blank(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for read, content in (
        (tsv, "text\tlabel\n\u200b\n一\t1\n\ufeff \n"),
        (table, "\u2060\ntext,label\n\u200b\n一,1\n"),
        (objects, '\u200b\n{"text": "一", "label": "1"}\n'),
    ):
        path.write_text(content, encoding="utf-8")
        assert len(read(path)) == 1  # type: ignore[arg-type]


def test_columns_of_any_name_are_asked_for_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text('{"te\\nxt": "一", "label": 0}\n', encoding="utf-8")
    columns = Columns("te\u2028" + "x" * 1000, "label")
    for read in (read_json_lines, read_columns, read_csv):
        with pytest.raises(UserError) as caught:
            read(path, columns)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300 + len(str(path))
