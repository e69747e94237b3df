"""The same text from file systems and data sets as from files."""

from __future__ import annotations

import gzip
import http.server
import lzma
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from glyphcrm.data.text_files import expand, iter_documents, source_digest
from glyphcrm.errors import UserError

DOCUMENTS = [["第一段。", "第二段。"], ["末"]]
PLAIN = "第一段。\n第二段。\n\n末\n".encode()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_urls_and_globs(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["\n".join(document) for document in DOCUMENTS]}), tmp_path / "e.parquet")
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(PLAIN)
    contents = {"a.txt": PLAIN, "b.txt.gz": gzip.compress(PLAIN), "c.xz": lzma.compress(PLAIN)}
    contents |= {"d.zst": sink.getvalue().to_pybytes(), "e.parquet": (tmp_path / "e.parquet").read_bytes()}
    for name, content in contents.items():
        memory.pipe(f"/x/{name}", content)
        (tmp_path / name).write_bytes(content)
        assert list(iter_documents(expand([f"memory://x/{name}"]))) == DOCUMENTS
    files = expand(["memory://x/*", "memory://x/a.txt"])
    assert [file.name for file in files] == sorted(contents)
    assert expand([f"file://{tmp_path}/*", str(tmp_path / "a.txt")]) == expand([f"{tmp_path}/*"])
    before = source_digest(files[0])
    assert before == source_digest(expand(["memory://x/a.txt"])[0])
    memory.pipe("/x/a.txt", PLAIN + b"x")
    assert before != source_digest(expand(["memory://x/a.txt"])[0])


def test_what_cannot_be_read_is_one_line(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/x/cut.txt.gz", gzip.compress(PLAIN)[:-9])
    memory.pipe("/x/empty.txt", b"")
    mistakes = {
        "memory://x/none.txt": "no such file",
        "memory://x/*.jsonl": "no file matches",
        "memory://x": "is a directory",
        "memory://x/empty.txt": "is empty",
        "nonsense://x/a.txt": "Protocol not known",
    }
    for url, message in mistakes.items():
        with pytest.raises(UserError, match=message):
            expand([url])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3://b/a\.txt: its protocol needs a library: Install s3fs"):
        expand(["s3://b/a.txt"])
    with pytest.raises(UserError, match=r"memory://.*cut\.txt\.gz is cut short"):
        list(iter_documents(expand(["memory://x/cut.txt.gz"])))
    files = expand(["memory://x/cut.txt.gz"])
    memory.pipe("/x/cut.txt.gz", gzip.compress(PLAIN)[:9])
    with pytest.raises(UserError, match=r"ended after 9 of \d+ bytes; repeat"):
        list(iter_documents(files))


def test_a_server_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")

    ended = threading.Event()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if "silent" in self.path:
                ended.wait(60)
            self.send_response(404 if "absent" in self.path else 302 if "moved" in self.path else 200)
            self.send_header("Location", "file:///etc/passwd")
            self.send_header("Content-Length", str(len(PLAIN)))
            self.send_header("ETag", "seven")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(PLAIN if "whole" in self.path else PLAIN[:10])

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        whole = expand([f"{place}/whole.txt?key=secret"])
        assert list(iter_documents(whole)) == DOCUMENTS and "seven" in source_digest(whole[0])
        assert "secret" not in str(whole[0])
        with pytest.raises(UserError, match=r"http://127.*/cut\.txt: (cannot be read|ended after)"):
            list(iter_documents(expand([f"{place}/cut.txt"])))
        with pytest.raises(UserError, match=r"/absent\.txt: no such file$"):
            expand([f"{place}/absent.txt"])
        with pytest.raises(UserError, match=r"/moved\.txt: cannot be read: .*file:///etc/passwd"):
            expand([f"{place}/moved.txt"])
        monkeypatch.setattr("glyphcrm.data.remote_files.SILENCE", 0.5)
        with pytest.raises(UserError, match=r"/silent\.txt: cannot be read: .*[Tt]imeout"):
            expand([f"{place}/silent.txt"])
        ended.set()
        server.shutdown()
    with pytest.raises(UserError, match=rf"cannot be read: .*:{server.server_port} .*; check the address"):
        expand([f"{place}/whole.txt"])


def test_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [f"第{i}篇。\n末" for i in range(10)]
    documents = [text.split("\n") for text in texts]
    rows = datasets.Dataset.from_dict({"id": list(range(10)), "text": texts})
    rows.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    datasets.DatasetDict(train=rows, dev=rows.select([4])).save_to_disk(str(tmp_path / "dict"))
    (tmp_path / "files").mkdir()
    for i in range(2):
        rows.select(range(5 * i, 5 * i + 5)).to_parquet(str(tmp_path / "files" / f"train-{i}.parquet"))
    for spec, pieces, wanted in (
        ("saved", 3, documents),
        ("dict", 1, documents),
        ("dict::dev", 1, documents[4:5]),
        ("files", 2, documents),
    ):
        sources = expand([f"datasets:{tmp_path}/{spec}"])
        assert len(sources) == pieces
        assert list(iter_documents(sources)) == wanted
        assert [d for source in sources for d in iter_documents([source])] == wanted
        assert len({source_digest(source) for source in sources}) == pieces
    mistakes = {
        "dict::test": "no split 'test'; there are 'train', 'dev'",
        "saved::dev": "was saved without splits",
        "files::test": "no split 'test'",
        "nowhere": "cannot be read",
        "a:b:c:d": "give datasets:NAME",
    }
    for spec, message in mistakes.items():
        with pytest.raises(UserError, match=message):
            expand([f"datasets:{tmp_path}/{spec}"])
    with pytest.raises(UserError, match="no column 'body'; the columns are 'id', 'text'"):
        list(iter_documents(expand([f"datasets:{tmp_path}/saved"]), text_column="body"))


def test_no_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the datasets library: pip install datasets"):
        expand(["datasets:x"])
