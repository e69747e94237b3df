from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.data import text_files
from glyphcrm.data.remote_files import BUFFER
from glyphcrm.data.text_files import expand, iter_documents
from glyphcrm.errors import UserError
from glyphcrm.normalization import normalize

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
DOCUMENTS = [["第一段。", "  second\u3000paragraph \r in one line"], ["𠀀字\u2028同行"], ["末"]]


def read(path: Path, **options: str) -> list[list[str]]:
    return list(iter_documents([path], **options))


def jsonl(texts: list[object], key: str = "text") -> bytes:
    return "".join(json.dumps({"id": 1, key: text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("compression", COMPRESS)
def test_every_text_format_gives_the_same_documents(tmp_path: Path, compression: str) -> None:
    blank = ["\n\n", "\r\n \t\r\n\n\u3000\n"]
    plain = "\r\n" + "".join("\n".join(document) + blank[i % 2] for i, document in enumerate(DOCUMENTS)).removesuffix(
        "\n\n"
    )
    texts: list[object] = ["\r\n\n".join(document) + "\n" for document in DOCUMENTS]
    contents = {".txt": b"\xef\xbb\xbf" + plain.encode(), ".jsonl": jsonl([*texts, " \n"])}
    if compression:
        contents[""] = contents[".txt"]
    for ending, content in contents.items():
        path = tmp_path / f"corpus{ending}{compression}"
        path.write_bytes(COMPRESS[compression](content))
        assert read(path) == DOCUMENTS, path
        half = len(content) // 2
        path.write_bytes(COMPRESS[compression](content[:half]) + COMPRESS[compression](content[half:]))
        assert read(path) == DOCUMENTS, "two compressed streams, one after the other"


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    texts = ["\n".join(document) for document in DOCUMENTS] * 300
    pq.write_table(pa.table({"id": range(len(texts)), "body": texts}), path, row_group_size=100)
    assert read(path, text_column="body") == DOCUMENTS * 300
    with pytest.raises(UserError, match="no column 'text'; the columns are 'id', 'body'"):
        read(path)
    with pytest.raises(UserError, match="row 0 of 'id' is int, not a string"):
        read(path, text_column="id")
    pq.write_table(pa.table({"text": ["一", None]}), path)
    with pytest.raises(UserError, match="row 1 of 'text' is NoneType"):
        read(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"corpus\.parquet: cannot be read as parquet"):
        read(path)


def test_a_file_starts_a_document(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}\n{name}{name}", encoding="utf-8")
    assert list(iter_documents(expand([f"{tmp_path}/*.txt"]))) == [["a", "aa"], ["b", "bb"]]


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1)))
def test_text_survives(tmp_path_factory: pytest.TempPathFactory, documents: list[list[str]]) -> None:
    def is_paragraph(text: str) -> bool:
        return bool(normalize(text)) and "\n" not in text and text[-1] != "\r" and text[0] != "\ufeff"

    documents = [[p for p in document if is_paragraph(p)] for document in documents]
    documents = [document for document in documents if document]
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes("\n\n".join("\n".join(document) for document in documents).encode())
    if documents:
        assert read(path) == documents
    else:
        with pytest.raises(UserError, match="no text in"):
            read(path)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("offset", [0, 3 * 5000 + 1, BUFFER - 1, BUFFER + 1])
def test_bytes_that_are_not_utf8_are_located(tmp_path: Path, compression: str, offset: int) -> None:
    # "中\n" has 4 bytes; what fills up to the offset has 1, so that the bad pair straddles a buffer.
    good = ("中\n" * (offset // 4)).encode()
    content = good + b"a" * (offset - len(good)) + b"\xe4\xb8" + "。\n".encode()
    path = tmp_path / f"bad.txt{compression}"
    path.write_bytes(COMPRESS[compression](content))
    where = f"byte {offset}" + (" of the decompressed text" if compression else "") + ";"
    with pytest.raises(UserError, match=rf"bad\.txt.*{where}"):
        read(path)


def test_characters_across_buffers_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    text = "ab" + "中" * BUFFER
    path.write_bytes(text.encode())
    assert read(path) == [[text]]


@pytest.mark.parametrize("nothing", ["\u200b", "\ufeff\u3000\u200d", "\x00\ufe0f", "\u00ad \t", "\u2060" * 9])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_what_normalisation_drops_is_blank(tmp_path: Path, nothing: str, end: str) -> None:
    documents = [[f"第{i}篇", "\u200b\u3000有"] for i in range(40)]
    path = tmp_path / "a.txt"
    lines = (end.join(document) + end + nothing + end for document in documents)
    path.write_bytes("".join(lines).encode())
    assert read(path) == documents
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([f"{end}{nothing}{end}".join(document) for document in documents]))
    assert read(path) == documents


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("天地玄黄\n".encode("utf-16"), "byte 0; it looks like UTF-16: convert it with iconv -f UTF-16 -t UTF-8"),
        (b"\xfe\xff" + "天地\n".encode("utf-16-be"), "byte 0; it looks like UTF-16"),
        ("天地\n".encode("utf-32"), "byte 0; it looks like UTF-32"),
        ("1玄 a\n".encode("utf-16-le"), "zero bytes, as in UTF-16"),
        ("\n天地玄黄\n".encode("gbk"), "byte 1; it looks like GBK: convert it with iconv -f GB18030 -t UTF-8"),
        ("這是我們的\n".encode("big5"), "byte 0; it looks like Big5: convert it with iconv -f BIG5 -t UTF-8"),
        ("玄黃\n".encode("big5"), "byte 0; it is in another encoding, perhaps GBK"),
        ("张\tB-PER\n\n是的，有一个人在那里。\n".encode("gbk"), "byte 0; it looks like GBK"),
        ("這是我們的\n".encode("gbk"), "byte 0; it looks like GBK: convert it with iconv -f GB18030 -t UTF-8"),
        ("これは政府の発表です\n".encode("shift-jis"), "byte 0; it is in another encoding, perhaps"),
        ("한국의 경제는 성장하고\n".encode("euc-kr"), "byte 0; it is in another encoding, perhaps"),
        ("天".encode() + b"\xff\n", "byte 3; it is damaged"),
        ("天地玄".encode() + "黄\n".encode("gbk"), "byte 9; it is damaged"),
        (b"caf\xe9\n", "byte 3; it is damaged, or in another encoding"),
    ],
)
def test_the_encoding_that_shows_is_named(tmp_path: Path, content: bytes, advice: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=advice):
        read(path)


def test_names_from_files_do_not_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["一"], key="te\nxt\x1b[31m" + "长" * 1000))
    with pytest.raises(UserError) as caught:
        read(path, text_column="一\n二")
    message = str(caught.value)
    assert message.isprintable() and len(message) < 300 + len(str(path))
    assert r"no key '一\n二'; the keys are 'id', 'te\nxt\x1b[31m" in message


@pytest.mark.parametrize("compression", list(COMPRESS)[1:])
@pytest.mark.parametrize("damage", ["cut", "cut by one", "flipped", "junk"])
def test_broken_compression_is_an_error(tmp_path: Path, compression: str, damage: str) -> None:
    whole = COMPRESS[compression]("".join(chr(0x4E00 + i % 5003) for i in range(200_000)).encode())
    middle = len(whole) // 2
    flipped = bytes(byte ^ 255 for byte in whole[middle : middle + 64])
    broken = {
        "cut": whole[:middle],
        "cut by one": whole[:-1],
        "flipped": whole[:middle] + flipped + whole[middle + 64 :],
        "junk": b"this was never compressed",
    }
    path = tmp_path / f"bad.txt{compression}"
    path.write_bytes(broken[damage])
    with pytest.raises(UserError, match=rf"bad\.txt\{compression} is cut short or corrupt|not UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jsonl(["一"]) + b'{"text": "\n', r"a\.jsonl:2: not JSON"),
        (jsonl(["一"]) + b"[" * 100_000, r"a\.jsonl:2: not JSON"),
        (jsonl(["一"], key="body"), r"a\.jsonl:1: no key 'text'; the keys are 'id', 'body'"),
        (b'["text"]\n', r"a\.jsonl:1: a JSON list, not an object"),
        (jsonl(["一", 3]), r"a\.jsonl:2: 'text' is int, not a string"),
        (jsonl(["一", None]), r"a\.jsonl:2: 'text' is NoneType, not a string"),
        (jsonl(["一", "\ud800"]), r"a\.jsonl:2: 'text' holds half of a surrogate pair"),
        (jsonl(["", " \n"]), r"no text in .*a\.jsonl"),
    ],
)
def test_broken_json_lines_are_located(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_what_would_not_fit_in_memory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("字" * 40 + "\n" + "字" * 40, encoding="utf-8")
    monkeypatch.setattr(text_files, "DOCUMENT_LIMIT", 79)
    with pytest.raises(UserError, match="more than 79 characters without a blank line"):
        read(path)
    monkeypatch.setattr(text_files, "LINE_LIMIT", 100)
    with pytest.raises(UserError, match="the line at byte 0 is longer"):
        read(path)


def test_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.jsonl.zst", "sub/c.TXT.GZ", "sub/d.xz", "[x].txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("字", encoding="utf-8")
    assert expand(["b.txt", "./b.txt", "**/*.*", str(tmp_path / "b.txt"), "[x].txt"]) == [
        Path(name) for name in ("[x].txt", "a.jsonl.zst", "b.txt", "sub/c.TXT.GZ", "sub/d.xz")
    ]
    for name in ("empty.txt", "a.json", "a.tar.gz", "a.parquet.gz", "noending", "a.txt.bz2"):
        Path(name).write_bytes(b"" if name == "empty.txt" else bz2.compress(b"a"))
    mistakes = {
        "*.nothing": "no file matches",
        "missing.txt": "no such file",
        "empty.txt": "is empty",
        "sub": "is a directory",
        "a.json": "unknown ending",
        "a.tar.gz": "unknown ending",
        "a.parquet.gz": "unknown ending",
        "noending": "unknown ending",
        "a.txt.bz2": "unknown ending",
    }
    for pattern, message in mistakes.items():
        with pytest.raises(UserError, match=message):
            expand([pattern])
    with pytest.raises(UserError, match="no text file was given"):
        expand([])
