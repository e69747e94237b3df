"""Whom a saved model is for; a file's digest is read once, and never trusted when the file may be another."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glyphcrm import files
from glyphcrm.checkpoint import save_checkpoint, save_with_tokens
from glyphcrm.errors import UserError
from glyphcrm.files import SETTLED_NS, file_digest, whole_directory
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.tokenization import GlyphCRMTokenizer


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file have been written long ago, and no digest be known."""
    monkeypatch.setattr(files, "_taken", {})
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 2 * SETTLED_NS)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of whole files that were read, as the length of a list."""
    taken: list[int] = []
    read = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: (taken.append(1), read(*given))[1])
    return taken


def test_a_file_is_read_once_and_again_when_it_changed(
    tmp_path: Path, settled: None, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "text", tmp_path / "data" / "digests.json"
    path.write_bytes(b"a" * 100)
    assert file_digest(path, cache) == file_digest(path, cache) == sha256(b"a" * 100)
    assert len(reads) == 1 and not cache.exists()
    cache.parent.mkdir()
    file_digest(path, cache)
    assert len(reads) == 1 and cache.exists()
    monkeypatch.setattr(files, "_taken", {})  # another process
    assert file_digest(path, cache) == sha256(b"a" * 100) and len(reads) == 1
    status = path.stat()
    with open(path, "r+b") as file:  # the same inode and size, and the old time of change set again
        file.seek(50)
        file.write(b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digest(path, cache) == sha256(b"a" * 50 + b"b" + b"a" * 49) and len(reads) == 2
    other = tmp_path / "other"
    other.write_bytes(b"c" * 100)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert file_digest(path, cache) == sha256(b"c" * 100) and len(reads) == 3


def test_the_digest_of_a_file_that_just_changed_is_not_kept(tmp_path: Path, reads: list[int]) -> None:
    path, cache = tmp_path / "text", tmp_path / "digests.json"
    path.write_bytes(b"a")
    assert file_digest(path, cache) == file_digest(path, cache) == sha256(b"a")
    assert len(reads) == 2 and not cache.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"text": 3}'])
def test_a_damaged_cache_is_no_cache(tmp_path: Path, settled: None, content: bytes) -> None:
    path, cache = tmp_path / "text", tmp_path / "digests.json"
    path.write_bytes(b"a")
    cache.write_bytes(content.replace(b"text", os.fsencode(path)))
    assert file_digest(path, cache) == sha256(b"a")
    assert json.loads(cache.read_bytes())[str(path)]["sha256"] == sha256(b"a")


def test_a_cache_that_cannot_be_written_is_passed_over(tmp_path: Path, settled: None) -> None:
    path, cache = tmp_path / "text", tmp_path / "digests.json"
    path.write_bytes(b"a")
    cache.mkdir()
    assert file_digest(path, cache) == sha256(b"a")
    with pytest.raises(UserError, match="absent: cannot be read: No such file"):
        file_digest(tmp_path / "absent", cache)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_saved_model_is_for_those_whom_the_umask_lets_read(tmp_path: Path, mask: int) -> None:
    """Whatever wrote its files: safetensors shuts out all other users."""
    before = os.umask(mask)
    try:
        with whole_directory(tmp_path / "model") as temporary:
            save_file({"weight": torch.ones(2)}, temporary / "model.safetensors")
            (temporary / "config.json").write_text("{}")
            (temporary / "inner").mkdir()
    finally:
        assert os.umask(before) == mask
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model", *(tmp_path / "model").iterdir())}
    directory, file = 0o777 & ~mask, 0o666 & ~mask
    assert modes == {"model": directory, "inner": directory, "model.safetensors": file, "config.json": file}


def test_a_model_is_saved_where_no_other_place_has_room(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(model, tokenizer, tmp_path / "one")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    save_with_tokens(model, tokenizer.tokens, tmp_path / "other")
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other
