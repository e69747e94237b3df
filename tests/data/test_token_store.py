from __future__ import annotations

import itertools
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphcrm.data import store_writer
from glyphcrm.data.store_format import FILES, STORE, TOKENS
from glyphcrm.data.token_store import TokenStore
from glyphcrm.errors import UserError
from glyphcrm.normalization import normalize
from tests.data.code_points import decode, encode

WRITER = """
import itertools, resource, sys
from pathlib import Path
import numpy as np
from glyphcrm.data.token_store import TokenStore
from glyphcrm.errors import UserError

def write(directory, paragraphs):
    documents = (["新年讲话，迈向充满希望的新世纪。" * 1000] for _ in paragraphs)
    encode = lambda text: np.frombuffer(text.encode("utf-32-le"), np.int32)
    return TokenStore.write(
        Path(directory), documents, encode, max_sentence_characters=100, fingerprint="f", progress=False
    )
"""


def write(directory: Path, documents: list[list[str]], limit: int = 20) -> TokenStore:
    return TokenStore.write(
        directory, documents, encode, max_sentence_characters=limit, fingerprint="f", progress=False
    )


def documents_of(store: TokenStore) -> list[str]:
    ranges = itertools.pairwise([0, *store.document_ends.tolist()])
    return ["".join(decode(store.sentence(i)) for i in range(first, end)) for first, end in ranges]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.text("一二，。！\n\u3000\u200be\u0301\U0001d15e𠀀", max_size=50))),
    st.integers(1, 30),
)
def test_a_store_holds_the_normalised_text(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[str]], limit: int
) -> None:
    directory = tmp_path_factory.mktemp("store") / "s"
    texts = ["".join(normalize("".join(document)).split()) for document in documents]
    if not any(texts):
        with pytest.raises(UserError, match="no character"):
            write(directory, documents, limit)
        assert not list(directory.parent.iterdir())
        return
    store = write(directory, documents, limit)
    # Where a cut, or a character that is dropped, parts a cluster, NFC comes out differently.
    assert list(map(normalize, documents_of(store))) == [normalize(text) for text in texts if text]
    lengths = np.diff(store.sentence_ends, prepend=0)
    assert lengths.min() >= 1
    assert lengths.max() <= limit
    assert np.diff(store.document_ends, prepend=0).min() >= 1
    tokens = np.concatenate([store.sentence(i) for i in range(store.sentence_count)])
    assert tokens.dtype == (np.uint32 if tokens.max() > 0xFFFF else np.uint16)
    assert store.token_count == len(tokens)
    assert (store.token_counts(0x5000) == np.bincount(tokens, minlength=0x5000)[:0x5000]).all()


def test_wide_ids_may_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "BLOCK_CHARACTERS", 7)
    documents = [["一二三四五六七八九十。" * 3], ["末𠀀。"], ["一二三四五六七八九十。" * 3]]
    store = write(tmp_path / "s", documents)
    assert documents_of(store) == [document[0] for document in documents]
    assert sorted(path.name for path in store.directory.iterdir()) == sorted(FILES)


def test_fingerprints(tmp_path: Path) -> None:
    assert not TokenStore.matches(tmp_path / "s", "f")
    write(tmp_path / "s", [["一。"]])
    assert TokenStore.matches(tmp_path / "s", "f")
    assert not TokenStore.matches(tmp_path / "s", "g")
    with pytest.raises(UserError, match="fingerprint f, wanted g"):
        TokenStore.open(tmp_path / "s", "g")
    assert documents_of(write(tmp_path / "s", [["二。"]])) == ["二。"], "a store is replaced"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "short", "long"])
def test_a_damaged_store_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path / "s", [["一。二。"], ["三。"]]).directory / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-2] if damage == "short" else content + content)
    assert not TokenStore.matches(tmp_path / "s", "f")
    with pytest.raises(UserError, match=r"tokenise again|store\.json is missing"):
        TokenStore.open(tmp_path / "s")


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}', '{"format": 2, "tokens": 3}', "{", "[" * 100_000])
def test_a_strange_description_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path / "s", [["一。"]])
    (tmp_path / "s" / STORE).write_text(content, encoding="utf-8")
    assert not TokenStore.matches(tmp_path / "s", "f")
    with pytest.raises(UserError, match="tokenise again"):
        TokenStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokens", 10**9), ("tokens", "x"), ("documents", -1), ("dtype", 1e308), ("dtype", "float16"), ("sha256", [])],
)
def test_a_strange_field_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = write(tmp_path / "s", [["一。二。"]]).directory / STORE
    path.write_text(json.dumps({**json.loads(path.read_bytes()), field: value}), encoding="utf-8")
    with pytest.raises(UserError, match="tokenise again"):
        TokenStore.open(tmp_path / "s")


@pytest.mark.parametrize("name", sorted(set(FILES) - {STORE}))
def test_a_changed_bit_is_noticed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "BLOCK_CHARACTERS", 3)
    path = write(tmp_path / "s", [["一二三。末𠀀。"], ["四五。"]]).directory / name
    assert TokenStore.matches(tmp_path / "s", "f")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not TokenStore.matches(tmp_path / "s", "f")


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds thesis\.txt"):
        write(tmp_path / "s", [["一。"]])
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "s" / "thesis.txt", [["一。"]])
    with pytest.raises(UserError, match="cannot write in"):
        write(tmp_path / "s" / "thesis.txt" / "deeper", [["一。"]])
    assert (tmp_path / "s" / "thesis.txt").read_text(encoding="utf-8") == "x"


def test_an_error_midway_leaves_nothing_and_the_old_store(tmp_path: Path) -> None:
    def broken() -> Iterator[list[str]]:
        yield ["二。"]
        raise UserError("line 7 is broken")

    write(tmp_path / "s", [["一。"]])
    with pytest.raises(UserError, match="line 7"):
        TokenStore.write(tmp_path / "s", broken(), encode, max_sentence_characters=9, fingerprint="g", progress=False)
    assert documents_of(TokenStore.open(tmp_path / "s", "f")) == ["一。"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_killed_writer_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    directory = tmp_path / "s"
    endless = f"{WRITER}\nwrite({str(directory)!r}, itertools.count())"
    tokens = tmp_path / ".s.building" / TOKENS
    with subprocess.Popen([sys.executable, "-c", endless]) as process:
        deadline = time.monotonic() + 60
        while not (tokens.exists() and tokens.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert tokens.stat().st_size > 0, "it was killed in the middle"
    assert not directory.exists()
    assert not TokenStore.matches(directory, "f")
    assert documents_of(write(directory, [["一。"]])) == ["一。"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    script = f"""{WRITER}
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
try:
    write({str(tmp_path / "s")!r}, itertools.count())
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"no room to write {tmp_path / 's'} (File too large)")
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    script = f"""{WRITER}
for name, paragraphs in (("small", 150), ("large", 750)):
    tokens = write({str(tmp_path)!r} + "/" + name, range(paragraphs)).token_count
    print(tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (small, small_peak), (large, large_peak) = [map(int, line.split()) for line in done.stdout.splitlines()]
    assert large - small == 9_600_000
    unit = 1 if sys.platform == "darwin" else 1024
    assert (large_peak - small_peak) * unit < 8_000_000, "these are 19 MB of ids, 29 MB of text"


def _first_sentence(store: TokenStore) -> str:
    return decode(store.sentence(0))


def test_other_processes_map_the_files_themselves(store: TokenStore) -> None:
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_first_sentence, [store]) == decode(store.sentence(0))


def test_bounds(store: TokenStore) -> None:
    with pytest.raises(IndexError, match="sentences"):
        store.sentence(store.sentence_count)
    with pytest.raises(ValueError, match="read-only"):
        store.sentence(0)[0] = 1
    description = json.loads((store.directory / STORE).read_text(encoding="utf-8"))
    assert description["documents"] == store.document_count == 100
