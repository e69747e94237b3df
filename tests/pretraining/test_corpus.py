"""What is kept of a text and its fonts is used again only for the same ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from glyphcrm import files
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.font_file import Font
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.pretraining.corpus import (
    DIGESTS_FILE,
    VOCABULARY_RECORD,
    Text,
    data_directory,
    in_font,
    prepare_vocabulary,
    read_prepared,
    tokenized,
)
from glyphcrm.pretraining.options import PretrainOptions
from tests.glyphs.font_files import SQUARE, font_file


def options_for(tmp_path: Path, *more: str) -> PretrainOptions:
    words = ("--preset", "nano", "--data", str(tmp_path / "text.txt"), "--output-dir", str(tmp_path / "run"))
    return PretrainOptions.parse([*words, "--no-input-only", *more], None)


def prepared(options: PretrainOptions) -> tuple[str, ...]:
    """Prepare vocabulary and tokens as a new process would; return the vocabulary."""
    files._taken.clear()
    text, directory = Text(options), data_directory(options)
    prepare_vocabulary(text, options, directory)
    _, tokenizer, _ = read_prepared(directory)
    tokenized(text, tokenizer, directory, 64, progress=False)
    return tokenizer.tokens


def replaced(path: Path, old: bytes, new: bytes) -> None:
    """Exchange bytes in the middle of a file; its size and time of change stay."""
    content, status = path.read_bytes(), path.stat()
    assert len(old) == len(new) and content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_text_exchanged_in_the_middle_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("天。\n\n" * 3 + "天地玄黄。" * 20_000 + "日月盈昃" + "宇宙洪荒。" * 20_000, encoding="utf-8")
    shared, options = str(tmp_path / "data"), options_for(tmp_path, "--data-dir", str(tmp_path / "data"))
    assert set("日月盈昃") < set(prepared(options))
    assert prepared(options) == prepared(options_for(tmp_path, "--data-dir", shared, "--seed", "7"))
    replaced(path, "日月盈昃".encode(), "辰宿列张".encode())
    with pytest.raises(UserError, match=r"data holds the vocabulary of another run \(text differ\)"):
        prepared(options)
    assert set("辰宿列张") < set(prepared(options_for(tmp_path, "--data-dir", str(tmp_path / "other"))))


def test_a_font_exchanged_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("天地玄黄。\n\n" * 4, encoding="utf-8")
    font = font_file(tmp_path / "user.ttf", {"天": SQUARE})
    options = options_for(tmp_path, "--font", str(font))
    prepared(options)
    prepared(options)
    font_file(font, {"天": (100, 0, 900, 700)})
    with pytest.raises(UserError, match=r"\(font differ\)"):
        prepared(options)


def test_pictures_of_a_font_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one file and one atlas, as long as what is kept of them is whole."""
    path = font_file(tmp_path / "font.ttf", {"天": SQUARE, "地": (100, 0, 500, 800)})
    atlas = GlyphAtlas.build(["[PAD]", "天", "地"], [open_font(path)])
    redrawn, drawn = GlyphAtlas.redrawn, list[int]()

    def counted(self: GlyphAtlas, font: Font, *, progress: bool = False) -> GlyphAtlas:
        drawn.append(len(self))
        return redrawn(self, font)

    monkeypatch.setattr(GlyphAtlas, "redrawn", counted)

    def draws(atlas: GlyphAtlas, directory: Path = tmp_path) -> bool:
        """Whether pictures, which are the right ones, are drawn."""
        before, font = len(drawn), open_font(path)
        found, expected = in_font(atlas, font, directory, progress=False), redrawn(atlas, font)
        assert found.tokens == expected.tokens and (found.bitmaps == expected.bitmaps).all()
        return len(drawn) > before

    assert draws(atlas) and not draws(atlas)
    assert draws(atlas.of(["地", "天"])) and not draws(atlas)
    for kept in tmp_path.glob("font-*"):
        kept.write_bytes(kept.read_bytes()[:-1])
    assert draws(atlas) and not draws(atlas)
    font_file(path, {"天": (100, 0, 300, 800)})
    files._taken.clear()
    assert draws(atlas) and not draws(atlas)
    for _ in range(2):
        assert draws(atlas, tmp_path / "missing")


def test_the_digest_of_a_text_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("天地玄黄。\n\n" * 4, encoding="utf-8")
    monkeypatch.setattr(files, "SETTLED_NS", -(10**12))
    for _ in range(2):
        prepared(options_for(tmp_path))
    kept = json.loads((tmp_path / "run" / "data" / DIGESTS_FILE).read_bytes())
    store = tmp_path / "run" / "data" / "tokens"
    binaries = [str(store / name) for name in ("tokens.bin", "sentence_ends.bin", "document_ends.bin")]
    assert sorted(kept) == sorted([str(tmp_path / "text.txt"), *binaries])
    monkeypatch.setattr(files.hashlib, "file_digest", None)  # which would fail
    prepared(options_for(tmp_path))


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("vocab.txt", "天", "地玄", "do not belong together"),
        ("vocabulary.json", '"size": 10', '"size": 9', "do not belong together"),
        ("vocabulary.json", '"size": 10', '"size": "10"', "vocabulary.json: damaged"),
        ("vocabulary.json", '"settings": {', '"settings": 5, "x": {', "vocabulary.json: damaged"),
    ],
)
def test_prepared_files_that_do_not_belong_together(
    tmp_path: Path, name: str, old: str, new: str, complaint: str
) -> None:
    (tmp_path / "text.txt").write_text("天地玄黄。\n\n" * 4, encoding="utf-8")
    options = options_for(tmp_path)
    assert len(prepared(options)) == 10
    path = data_directory(options) / name
    content = path.read_text(encoding="utf-8")
    assert content.count(old) == 1
    path.write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        prepared(options)


def test_tokens_exchanged_are_made_anew(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("天地玄黄。\n\n" * 20, encoding="utf-8")
    options = options_for(tmp_path)
    prepared(options)
    path = data_directory(options) / "tokens" / "tokens.bin"
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    prepared(options)
    assert path.read_bytes() == content


def test_data_of_an_older_version_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("天地玄黄。\n\n" * 4, encoding="utf-8")
    options = options_for(tmp_path)
    prepared(options)
    record = data_directory(options) / VOCABULARY_RECORD
    content = json.loads(record.read_bytes())
    without_digest = {name: value for name, value in content.items() if name != "sha256"}
    for older in ({**content, "settings": {**content["settings"], "text": "demo"}}, without_digest):
        record.write_text(json.dumps(older), encoding="utf-8")
        with pytest.raises(UserError, match="was made by an older version"):
            prepared(options)


def test_places_that_cannot_be_written_in(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("天地玄黄。\n\n" * 4, encoding="utf-8")
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file" / "data", Path("/proc/data"), tmp_path / ("x" * 300)):
        with pytest.raises(UserError) as caught:
            prepared(options_for(tmp_path, "--data-dir", str(place)))
        assert str(caught.value).startswith(f"{place}: cannot be written in: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "text.txt"]


@pytest.mark.parametrize("rate", ["nan", "inf", "1e400", "-1"])
def test_a_rate_is_a_finite_number(tmp_path: Path, rate: str) -> None:
    with pytest.raises(UserError, match=r"--learning-rate is .*; give 0 or more"):
        options_for(tmp_path, "--learning-rate", rate)
