"""`glyphcrm atlas add`: real checkpoints, real PNG files, and files that only look like them."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from glyphcrm.checkpoint import load_atlas, load_checkpoint, save_checkpoint
from glyphcrm.cli.entry import main
from glyphcrm.configuration import preset
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.glyphs.picture_file import PICTURE_SOURCE, read_picture
from glyphcrm.glyphs.raster import pack, unpack
from glyphcrm.modeling import GlyphCRMForPreTraining, GlyphCRMForTokenClassification
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import READ_ONLY, TEXT, VOCABULARY_SIZE
from tests.glyphs.font_files import SQUARE, font_file

PRIVATE = "\ue123"


def ring(size: int = 480, thickness: int = 40, place: tuple[int, int] = (60, 90), extent: int = 300) -> Image.Image:
    """A square outline in black on white, off the centre."""
    levels = np.full((size, size), 255, np.uint8)
    x, y = place
    levels[y : y + extent, x : x + extent] = 0
    levels[y + thickness : y + extent - thickness, x + thickness : x + extent - thickness] = 255
    return Image.fromarray(levels)


def saved(image: Image.Image, path: Path) -> Path:
    image.save(path, "PNG")
    return path


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file, by hand: 8-bit grey, these chunks after the header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def sparse(path: Path, size: int) -> None:
    """A file of that size, which takes no room."""
    path.touch()
    os.truncate(path, size)


@pytest.fixture(scope="module")
def pristine(atlas: GlyphAtlas, tokenizer: GlyphCRMTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = GlyphCRMForPreTraining.from_atlas(preset("nano", vocab_size=VOCABULARY_SIZE), atlas)
    directory = tmp_path_factory.mktemp("pristine") / "model"
    save_checkpoint(model, tokenizer, directory)
    return directory


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def run(*arguments: object) -> int:
    return main(["atlas", "add", *map(str, arguments)])


def box(picture: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """First and last row, first and last column of the ink."""
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def test_a_trained_model_reads_more_and_is_the_same(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    font = font_file(tmp_path / "user.ttf", {"𠮷": SQUARE})
    picture, out = saved(ring(), tmp_path / "a=b.png"), tmp_path / "more"
    exact = tmp_path / "exact.png"
    before = load_atlas(checkpoint)
    Image.fromarray(255 - before.pictures(before.rows["天"]) * 255).save(exact)
    assert (
        run(
            "𠮷 犇",
            "--model",
            checkpoint,
            "--out",
            out,
            "--font",
            font,
            "--png",
            f"U+E123={picture}",
            "--png",
            f"A={exact}",
        )
        == 0
    )
    printed = capsys.readouterr().out
    n = len(before)
    assert f"{n + 4} rows = {n} of {checkpoint} + 4 new" in printed
    assert f"𠮷 U+20BB7 row {n:<6} Made Up Regular 1.500" in printed
    assert f"A U+0041 row {n + 3:<6} {PICTURE_SOURCE}" in printed

    after = load_atlas(out)
    assert after.tokens == (*before.tokens, "𠮷", "犇", PRIVATE, "A")
    assert np.array_equal(after.bitmaps[:n], before.bitmaps)
    assert [after.fonts[source] for source in after.sources[:n]] == [before.fonts[source] for source in before.sources]
    assert np.array_equal(after.bitmaps[n + 1], GlyphAtlas.build("犇", [default_font()]).bitmaps[0])
    assert np.array_equal(after.bitmaps[n + 3], before.bitmaps[before.rows["天"]])

    old, new = GlyphCRMForPreTraining.from_pretrained(checkpoint), GlyphCRMForPreTraining.from_pretrained(out)
    assert new.config.vocab_size == old.config.vocab_size
    kept = dict(new.state_dict())
    for name, tensor in old.state_dict().items():
        assert torch.equal(kept[name][: len(tensor)], tensor), name
    old_tokenizer, tokenizer = AutoTokenizer.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(out)
    text = f"天地[MASK]{READ_ONLY}黄"
    assert tokenizer(text)["input_ids"] == old_tokenizer(text)["input_ids"]
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(old(**batch).prediction_logits, new(**batch).prediction_logits)
        added = tokenizer(f"天𠮷犇{PRIVATE}A", return_tensors="pt")
        assert added["input_ids"][0, 2:-1].tolist() == [n, n + 1, n + 2, n + 3]
        assert old_tokenizer(f"𠮷犇{PRIVATE}A")["input_ids"][1:-1] == [tokenizer.unk_token_id] * 4
        states = new.glyphcrm(**added).last_hidden_state[0]
    assert torch.isfinite(states).all() and not torch.allclose(states[2], states[3])
    answers = pipeline("fill-mask", str(out))(f"𠮷{PRIVATE}[MASK]")
    assert {answer["token_str"] for answer in answers} <= set(before.tokens)


def test_a_drawn_character_can_be_predicted(checkpoint: Path, tmp_path: Path) -> None:
    """What its picture makes of it, whoever it is; the read-only characters before it are not predicted with it."""
    out, picture = tmp_path / "more", tmp_path / "drawn.png"
    before = load_atlas(checkpoint)
    Image.fromarray(255 - before.pictures(before.rows[READ_ONLY[0]]) * 255).save(picture)
    pictures = ("--png", f"U+E123={picture}", "--png", f"U+E124={picture}")
    assert run(*pictures, "--model", checkpoint, "--out", out, "--predict") == 0
    fill = pipeline("fill-mask", str(out))
    answers = fill("天[MASK]黄", targets=[PRIVATE, "\ue124"])
    assert {answer["token"] for answer in answers} == {len(before), len(before) + 1}
    assert answers[0]["score"] == answers[1]["score"] > 0  # one picture, one row
    with pytest.warns(UserWarning, match="does not predict"):
        fill("天[MASK]黄", targets=[READ_ONLY[0]])


def test_a_drawn_character_is_as_likely_as_a_text_says(checkpoint: Path, tmp_path: Path) -> None:
    out, picture, text = tmp_path / "more", tmp_path / "drawn.png", tmp_path / "text.txt"
    saved(ring(), picture)
    text.write_text(TEXT + 5 * TEXT[:25] + 99 * PRIVATE, encoding="utf-8")
    pictures = ("--png", f"U+E123={picture}", "--png", f"U+E124={picture}")
    asked = (*pictures, "--model", checkpoint, "--out", out, "--counts-from", text)
    assert run(*asked) == 2 and not out.exists()
    assert run(*asked, "--predict") == 0
    often, never = load_checkpoint(out, GlyphCRMForPreTraining, heads=True)[0].mlm.decoder.weight[-2:]
    assert not torch.allclose(often, never, rtol=0.1)  # one picture, two rows


def test_a_tagger_predicts_no_characters(checkpoint: Path, tokenizer: GlyphCRMTokenizer, tmp_path: Path) -> None:
    tagger = GlyphCRMForTokenClassification.from_pretrained(checkpoint)
    save_checkpoint(tagger, tokenizer, tmp_path / "tagger")
    assert run("犇", "--model", tmp_path / "tagger", "--out", tmp_path / "more", "--predict") == 2
    assert not (tmp_path / "more").exists()


def test_heads_and_labels_stay(model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path) -> None:
    config = model.config.__class__(**{**model.config.to_dict(), "id2label": {0: "O", 1: "B-PER", 2: "I-PER"}})
    tagger = GlyphCRMForTokenClassification(config).eval()
    tagger.glyph_model.load_state_dict(model.glyph_model.state_dict())
    save_checkpoint(tagger, tokenizer, tmp_path / "tagger")
    assert run("犇", "--model", tmp_path / "tagger", "--out", tmp_path / "more") == 0
    new = AutoModelForTokenClassification.from_pretrained(tmp_path / "more")
    assert isinstance(new, GlyphCRMForTokenClassification)
    assert new.config.id2label == {0: "O", 1: "B-PER", 2: "I-PER"}
    batch = tokenizer("天地玄黄", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(tagger(**batch).logits, new(**batch).logits)


def test_a_second_time_adds_to_the_first(checkpoint: Path, tmp_path: Path) -> None:
    picture = saved(ring(), tmp_path / "ring.png")
    assert run("犇", "--model", checkpoint, "--out", tmp_path / "one", "--png", f"𠮷={picture}") == 0
    assert run("骉", "--model", tmp_path / "one", "--out", tmp_path / "two", "--png", f"𠀀={picture}") == 0
    atlas = load_atlas(tmp_path / "two")
    assert atlas.tokens[-4:] == ("犇", "𠮷", "骉", "𠀀")
    assert [atlas.fonts[source] for source in atlas.sources[-4:]].count(PICTURE_SOURCE) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "no character to add"),
        (("\n",), "no character to add"),
        (("天",), "reads 天 U+5929 already"),
        (("--png", "天={picture}"), "reads 天 U+5929 already"),
        (("犇", "--png", "犇={picture}"), "犇 U+7287 is to be drawn by a font and by --png"),
        (("--png", "犇={picture}", "--png", "U+7287={picture}"), "has a picture already"),
        (("--png", "{picture}"), "give one character, =, and a file"),
        (("--png", "犇犇={picture}"), "give one character, =, and a file"),
        (("--png", "U+110000={picture}"), "give one character, =, and a file"),
        (("--png", "U+3000={picture}"), "texts never hold"),
        (("--png", "\uf900={picture}"), "texts never hold"),
        (("--png", "U+D800={picture}"), "lone surrogate"),
        (("--png", "犇=absent.png"), "absent.png: No such file or directory; give"),
        (("\U0010fffd",), "no font has"),
        (("犇", "--font", "absent.ttf"), "absent.ttf"),
        (("犇", "--font", "{font}"), "has none of the characters"),
    ],
)
def test_what_cannot_be_added_is_refused(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    files = {"picture": saved(ring(), tmp_path / "ring.png"), "font": font_file(tmp_path / "user.ttf", {"𠮷": SQUARE})}
    filled = [argument.format(**files) for argument in arguments]
    assert run(*filled, "--model", checkpoint, "--out", tmp_path / "more") == 2
    error = capsys.readouterr().err
    assert complaint in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "more").exists()


def test_models_and_places_that_do_not_serve_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(model: Path, out: Path) -> str:
        assert run("犇", "--model", model, "--out", out) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        return printed

    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    assert "exists and is not empty" in error(checkpoint, tmp_path / "used")
    assert "exists and is not empty" in error(checkpoint, checkpoint)
    assert "no config.json there" in error(tmp_path / "absent", tmp_path / "more")
    foreign = Path(shutil.copytree(checkpoint, tmp_path / "foreign"))
    config = json.loads((foreign / "config.json").read_text(encoding="utf-8"))
    # A name that would run code of the checkpoint, were it looked up there.
    config |= {"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Evil"}}
    (foreign / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (foreign / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    assert "names one of GlyphCRMForMaskedLM" in error(foreign, tmp_path / "more")
    config["architectures"] = ["GlyphCRMForPreTraining"]
    (foreign / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert run("犇", "--model", foreign, "--out", tmp_path / "tame") == 0
    assert not (tmp_path / "ran").exists()
    with (checkpoint / "model.safetensors").open("r+b") as file:
        os.truncate(file.fileno(), 5000)
    assert "truncated, or no weights" in error(checkpoint, tmp_path / "more")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("size", [96, 200, 480, 1000])
def test_the_ink_of_a_picture_comes_to_the_middle(tmp_path: Path, size: int) -> None:
    extent = size // 2
    image = ring(size, size // 12, (0, size // 8), extent)
    top, bottom, left, right = box(unpack(read_picture(saved(image, tmp_path / "a.png"))))
    # Half of the em of 46 pixels, as far from the left as from the right, give or take the pixel that is left over.
    for first, last in ((top, bottom), (left, right)):
        assert last - first + 1 == pytest.approx(23, abs=1)
        assert first + last == pytest.approx(47, abs=1)


def test_a_picture_of_48_pixels_is_taken_as_it_is(tmp_path: Path, atlas: GlyphAtlas) -> None:
    for row in range(1, len(atlas)):
        levels = np.where(atlas.pictures(row), 127, 128).astype(np.uint8)  # the middle is paper, what is darker is ink
        assert np.array_equal(read_picture(saved(Image.fromarray(levels), tmp_path / "a.png")), atlas.bitmaps[row])


def test_every_kind_of_png_gives_the_same_picture(tmp_path: Path) -> None:
    grey = ring(460)  # its edges lie between the pixels of the em, so that the ink's darkness moves none
    expected = read_picture(saved(grey, tmp_path / "grey.png"))
    assert 0.1 < unpack(expected).mean() < 0.4
    clear = Image.new("RGBA", grey.size, (0, 0, 0, 0))  # black, and transparent
    clear.paste((20, 20, 60, 255), mask=Image.eval(grey, lambda level: 255 - level))
    indexed = clear.quantize(4)
    kinds = {
        "bilevel": grey.convert("1"),
        "colour": grey.convert("RGB"),
        "transparent": clear,
        "indexed": indexed,
        "grey and alpha": clear.convert("LA"),
        "16 bits": Image.fromarray(np.asarray(grey).astype(np.uint16) * 200 + 2000),
    }
    for name, image in kinds.items():
        assert np.array_equal(read_picture(saved(image, tmp_path / f"{name}.png")), expected), name


def test_a_wide_picture_keeps_its_proportions(tmp_path: Path) -> None:
    image = Image.new("L", (400, 200), 255)
    image.paste(0, (0, 80, 400, 120))
    top, bottom, left, right = box(unpack(read_picture(saved(image, tmp_path / "a.png"))))
    assert (right - left + 1, bottom - top + 1) == (46, pytest.approx(4.6, abs=1))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b""), "not a PNG image"),
        (lambda path: path.write_text("天"), "not a PNG image"),
        (lambda path: ring().save(path, "GIF"), "not a PNG image"),
        (lambda path: path.write_bytes(png(48, 48)), "not a PNG image, or a damaged one"),
        (lambda path: sparse(path, 1 << 40), "larger than 16 MiB"),
        # Headers that promise more than is there: nothing of that size is ever held.
        (lambda path: path.write_bytes(png(2**31 - 1, 2**31 - 1, (b"IDAT", b""))), "not a PNG image"),
        (lambda path: path.write_bytes(png(10_000, 10_000, (b"IDAT", b""))), "10000x10000 pixels; give"),
        (lambda path: path.write_bytes(png(4097, 4097, (b"IDAT", b""))), "4097x4097 pixels; give"),
        (lambda path: path.write_bytes(png(9, 9, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24))))), "not a PNG"),
        (lambda path: Image.new("L", (100, 201), 255).save(path), "100x201 pixels; give a picture of one"),
        (lambda path: Image.new("L", (100, 100), 255).save(path), "blank at 48x48"),
        (lambda path: Image.new("L", (48, 48), 128).save(path), "blank at 48x48"),
        (lambda path: Image.new("RGBA", (100, 100), (0, 0, 0, 0)).save(path), "blank at 48x48"),
        (lambda path: ring(thickness=1).save(path), "blank at 48x48"),
        (lambda path: Image.eval(ring(), lambda level: 255 - level).save(path), "more than 75% of it is ink"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_files_that_are_no_picture_are_refused(tmp_path: Path, make: Callable[[Path], object], complaint: str) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(UserError, match=complaint) as caught:
        read_picture(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = saved(ring(96, 10, (10, 10), 60).convert("P"), tmp_path / "a.png").read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(8, len(content))] = draw.randrange(256)
        (tmp_path / "a.png").write_bytes(content[: draw.randint(len(content) // 2, len(content))])
        try:
            assert read_picture(tmp_path / "a.png").shape == (288,)
        except UserError:
            refused += 1
    assert refused > 200


def test_pack_is_the_inverse_of_unpack(tmp_path: Path) -> None:
    bitmap = read_picture(saved(ring(), tmp_path / "a.png"))
    assert bitmap.dtype == np.uint8 and np.array_equal(pack(unpack(bitmap)), bitmap)
