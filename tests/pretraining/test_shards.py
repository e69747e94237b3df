"""Text in parts, by several processes, from other places: always the store that one process makes of files."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphcrm.data import store_writer
from glyphcrm.data.store_format import TOKENS
from glyphcrm.data.token_store import TokenStore
from glyphcrm.errors import UserError
from glyphcrm.pretraining.corpus import STORE_DIRECTORY, Text, read_prepared, split_evenly, tokenized
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.pretraining.shards import RECORD, TokenizeOptions, tokenize_text
from tests.pretraining.runs import command, main

EXCLUDED = "宙"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files of very different sizes; the vocabulary has no ㎡, which is read as m2; one file is blank."""
    folder = tmp_path_factory.mktemp("shards")
    rng = random.Random(3)
    for i, count in enumerate((3, 40, 1, 0, 9)):
        documents = ["".join(rng.choices("天地玄黄宇宙洪荒日月。㎡m2", k=rng.randint(5, 90))) for _ in range(count)]
        (folder / f"{i}.txt").write_text("\n\n".join(documents) or " \n", encoding="utf-8")
    (folder / "excluded").write_text(EXCLUDED, encoding="utf-8")
    return folder


def make(text: Path, out: Path, *more: str) -> str:
    words = ("--data", f"{text}/*.txt", "--output-dir", str(out), "--no-input-only", "--vocabulary-size", "14")
    return tokenize_text(TokenizeOptions.parse([*words, "--exclude-characters", str(text / "excluded"), *more]))


def content(directory: Path) -> list[object]:
    """All that a run reads, without where it lies."""
    store = TokenStore.open(directory / STORE_DIRECTORY)
    sentences = [store.sentence(i).tolist() for i in range(store.sentence_count)]
    files = [
        (directory / name).read_bytes() for name in ("vocab.txt", "vocabulary.json", "atlas.safetensors", "text.json")
    ]
    ends = [store.sentence_ends.tolist(), store.document_ends.tolist(), store.token_counts(20).tolist()]
    return [sentences, *ends, store.fingerprint, *files]


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "text"
    make(text, out, "--workers", "1")
    return out


def test_several_processes_make_the_same(
    text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "BLOCK_CHARACTERS", 150)
    make(text, tmp_path / "three", "--workers", "3")
    assert content(tmp_path / "three") == content(whole)
    name = f"{STORE_DIRECTORY}/{TOKENS}"
    assert (tmp_path / "three" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(("parts", "order"), [(2, [2, 1, 2]), (5, [4, 1, 5, 2, 3, 3, 4, 5, 1, 2])])
def test_parts_in_any_order_make_the_same(
    text: Path, whole: Path, tmp_path: Path, parts: int, order: list[int]
) -> None:
    for at, i in enumerate(order):
        told = make(text, tmp_path, "--shard", f"{i}/{parts}")
        assert ("train on them" in told) == (at == len(order) - 1)
    assert content(tmp_path) == content(whole)
    assert not (tmp_path / STORE_DIRECTORY / TOKENS).exists()  # no token is copied
    store = TokenStore.open(tmp_path / STORE_DIRECTORY)
    of_one = TokenStore.open(whole / STORE_DIRECTORY)
    for first, end in itertools.combinations(range(0, store.sentence_count + 1, 7), 2):
        assert np.array_equal(store.sentences(first, end), of_one.sentences(first, end))


def parts(text: Path, out: Path, numbers: tuple[int, ...] = (1, 2, 1)) -> str:
    return [make(text, out, "--shard", f"{i}/2") for i in numbers][-1]


def test_a_killed_part_is_repeated(text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    parts(text, tmp_path, (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(store_writer._ArrayFile, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            parts(text, tmp_path, (1,))
    assert "train on them" in parts(text, tmp_path, (1,))
    assert content(tmp_path) == content(whole)


def test_a_damaged_part_is_named_and_repeated(text: Path, whole: Path, tmp_path: Path) -> None:
    parts(text, tmp_path)
    tokens = tmp_path / "parts" / "2-of-2" / STORE_DIRECTORY / TOKENS
    tokens.write_bytes(bytes(byte ^ 1 for byte in tokens.read_bytes()))
    options = PretrainOptions(data_dir=str(tmp_path), exclude_characters=str(text / "excluded"), output_dir="no")
    tokenizer = read_prepared(tmp_path)[1]
    with pytest.raises(UserError, match=r"/parts/2-of-2/tokens/tokens\.bin is damaged"):
        tokenized(Text(options), tokenizer, tmp_path, options.recipe.max_length, progress=False)
    parts(text, tmp_path, (2,))
    tokenized(Text(options), tokenizer, tmp_path, options.recipe.max_length, progress=False)
    assert content(tmp_path) == content(whole)
    tokens.unlink()
    with pytest.raises(UserError, match=r"/parts/2-of-2/tokens/tokens\.bin is missing"):
        tokenized(Text(options), tokenizer, tmp_path, options.recipe.max_length, progress=False)


def test_parts_that_do_not_belong_together(text: Path, tmp_path: Path) -> None:
    shutil.copytree(text, tmp_path / "text")
    text, out = tmp_path / "text", tmp_path / "out"
    parts(text, out, (1, 2))
    with pytest.raises(UserError, match=r"parts/1-of-2 was made with other --max-length; give the same"):
        make(text, out, "--shard", "1/2", "--max-length", "64")
    with pytest.raises(UserError, match=r"parts/1-of-2 is no part of 3"):
        make(text, out, "--shard", "1/3")
    with pytest.raises(UserError, match=r"out: part 1 of 2 is not tokenised; repeat .* --shard 1/2"):
        Text(PretrainOptions(data_dir=str(out), output_dir="no"))
    (text / "4.txt").write_text((text / "4.txt").read_text(encoding="utf-8").replace("天", "月"), encoding="utf-8")
    with pytest.raises(UserError, match=r"parts/2-of-2 was made before '4\.txt' changed"):
        parts(text, out, (2,))
    (out / "parts" / "1-of-2" / RECORD).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"parts/1-of-2/counted\.json: damaged"):
        parts(text, out, (1,))
    with pytest.raises(UserError, match=r"--shard 1/9: a part has one file or more, and the text has 5"):
        make(text, tmp_path / "other", "--shard", "1/9")
    for shard in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(UserError, match=f"--shard {shard}: give the part"):
            make(text, tmp_path / "other", "--shard", shard)
    with pytest.raises(UserError, match="--font draws a new atlas"):
        make(text, tmp_path / "other", "--init", "somewhere", "--font", "kai.ttf")


def test_pretraining_needs_no_more_than_the_directory(text_file: Path, tmp_path: Path) -> None:
    shutil.copytree(text_file.parent, tmp_path / "text")
    words = ["--data", f"{tmp_path}/text/*.txt", "--output-dir", str(tmp_path / "data"), "--no-input-only"]
    tokenize_text(TokenizeOptions.parse([*words, "--preset", "nano"]))
    shutil.rmtree(tmp_path / "text")
    arguments = command(
        text_file, tmp_path / "run", "--data-dir", str(tmp_path / "data"), "--workers", "0", "--steps", "2"
    )
    assert main([word for word in arguments if word not in ("--data", str(text_file))]) == 0
    assert (tmp_path / "run" / "model").exists()


@settings(max_examples=50)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.data())
def test_parts_are_even_runs_of_files(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    bounds = split_evenly(sizes, count)
    assert bounds[0] == 0 and bounds[-1] == len(sizes) and len(bounds) == count + 1
    assert all(a < b for a, b in itertools.pairwise(bounds))
    if count * 2 <= len(sizes) and len(set(sizes)) == 1:
        assert max(b - a for a, b in itertools.pairwise(bounds)) <= len(sizes) // count + 1
