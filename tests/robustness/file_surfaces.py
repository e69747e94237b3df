"""Text to train on, tasks, fonts, pictures: files that anybody may have made."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow
import pyarrow.parquet
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTCollection, TTFont
from PIL import Image

from glyphcrm.cli.entry import main
from glyphcrm.glyphs.fonts import default_font
from tests.glyphs import font_files
from tests.robustness.material import CHARACTERS, documents, labelled, models, tagged
from tests.robustness.mutation import VALUES, damaged, damaged_encoding
from tests.robustness.runner import Case


class Accepted(BaseException):
    """Raised where training would begin: the input was taken."""


def taken(call: Callable[[], int], place: str) -> int:
    """Return what `call` returns, and 0 if it reaches `place`, where training would begin."""
    with mock.patch(place, side_effect=Accepted):
        try:
            return call()
        except Accepted:
            return 0


PRETRAINING_BEGINS = "glyphcrm.pretraining.run.train"
PRETRAIN = [
    *("pretrain", "--preset", "nano", "--steps", "4", "--batch-size", "2", "--micro-batch-size", "2"),
    *("--eval-every", "2", "--eval-samples", "2", "--save-every", "2", "--no-input-only", "--workers", "0"),
    "--no-reuse-memory",
]
FINETUNING_BEGINS = "glyphcrm.finetuning.seed_run.SeedRun._train"
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": partial(gzip.compress, compresslevel=1),
    ".xz": partial(lzma.compress, preset=0),
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}
JSON_LINES = (
    *('{"text": "\\ud800"}', '{"text": 1}', '{"text": null}', '{"text": ["a"]}', '{"txt": "a"}', "[]", "1", "null"),
    *("{", "", "NaN", "[" * 100_000, '{"text":' * 5000, '{"text": 1e999}', '{"a\\nb\\u001b": 1}'),
    *('{"text": ' + "9" * 5000 + "}", '{"' + "k" * 100_000 + '": 1}', '\ufeff{"text": "天"}'),
)
STRANGE = ("", " ", "\u3000", "\u200b", "\ufeff", "é\u0301" * 300, "\0", '"', "\u2028", "\x1b[31m", "x" * 9999)
COLUMNS: tuple[Any, ...] = (
    {"text": [1, 2]},
    {"other": ["天"]},
    {"text": [None, "天"]},
    {"text": [b"\xff\xfe"]},
    {"text": [["天"]]},
    {"text": [{"a": "天"}]},
    {"text": []},
    {},
)


def text(rng: random.Random, directory: Path) -> Case:
    """A text to pre-train on, damaged, of another encoding, or of another kind than its name says."""
    whole = documents(rng)
    kind, compression = rng.choice(("txt", "txt", "jsonl", "parquet")), rng.choice(tuple(COMPRESSIONS))
    content = "\n\n".join(whole).encode()
    if kind == "jsonl":
        lines = [json.dumps({"text": document}, ensure_ascii=False) for document in whole]
        if rng.random() < 0.6:
            lines[rng.randrange(len(lines))] = rng.choice(JSON_LINES)
        content = "\n".join(lines).encode()
    if kind == "parquet":
        sink, compression = io.BytesIO(), ""
        columns = {"text": whole} if rng.random() < 0.6 else rng.choice(COLUMNS)
        pyarrow.parquet.write_table(pyarrow.table(columns), sink, compression=rng.choice(("none", "zstd")))
        content = sink.getvalue()
    how = rng.randrange(6)
    if how == 0:
        content = damaged(rng, content)
    elif how == 1:
        content = damaged_encoding(rng, content)
    content = COMPRESSIONS[compression](content)
    if how == 2:
        content = damaged(rng, content)
    elif how == 3:
        content = rng.choice((content[: rng.randrange(len(content))], rng.randbytes(rng.randint(0, 3000)), content * 2))
    elif how == 4 and rng.random() < 0.3:
        content = COMPRESSIONS[compression](rng.choice((b"\0", b"\n", "天".encode())) * (1 << rng.randint(10, 21)))
    if how == 5:
        kind, compression = rng.choice(("txt", "jsonl", "parquet", "csv", "docx")), rng.choice(tuple(COMPRESSIONS))
    path = directory / f"text.{kind}{compression}"
    path.write_bytes(content)
    out = directory / "out"
    words = [*PRETRAIN, "--data", str(path), "--output-dir", str(out)]
    return Case(lambda: taken(partial(main, words), PRETRAINING_BEGINS), f"{path.name} {how}", out)


def task(rng: random.Random, directory: Path) -> Case:
    """A task of one's own: its .toml, or the file that it names, damaged or strange."""
    settings: dict[str, Any] = {"kind": "sentence", "text": "text", "label": "label", "epochs": 1}
    rows = labelled(rng)
    ending = rng.choice((".tsv", ".csv", ".jsonl", ".bio"))
    strange = rng.choice(STRANGE)
    if rng.random() < 0.5:
        rows = [rng.choice(((strange, label), (sentence, strange), (sentence, label))) for sentence, label in rows]
    separator = {".tsv": "\t", ".csv": ","}.get(ending, "\t")
    content = "\n".join([f"text{separator}label", *(separator.join(row) for row in rows)])
    if ending == ".jsonl":
        content = "\n".join(json.dumps(dict(zip(("text", "label"), row, strict=True))) for row in rows)
    elif ending == ".bio":
        settings = {"kind": "tagging", "epochs": 1}
        content = tagged(rng)
        if rng.random() < 0.5:
            lines = content.split("\n")
            lines[rng.randrange(len(lines))] = rng.choice(("天 B", "天", "天地 O", "天 O O", f"{strange}\tO", "天 B-"))
            content = "\n".join(lines)
    stored = content.encode("utf-8", "surrogatepass")
    how = rng.randrange(4)
    stored = (bytes, partial(damaged, rng), partial(damaged_encoding, rng), bytes)[how](stored)
    settings["train"] = f"rows{ending}"
    if how == 3:
        settings[rng.choice((*settings, "dev", "metric", "max_length", "batch_size", "pair"))] = rng.choice(
            (*VALUES, "../../../etc/passwd", "tagging", "pair", "rows.tsv")
        )
    (directory / f"rows{ending}").write_bytes(stored)
    description = "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()).encode()
    if rng.random() < 0.15:
        description = damaged(rng, description)
    (directory / "task.toml").write_bytes(description)
    out = directory / "out"
    words = ["finetune", "--task", str(directory / "task.toml"), "--model", str(models() / "glyphcrm")]
    words += ["--seeds", "1", "--output-dir", str(out)]
    return Case(lambda: taken(partial(main, words), FINETUNING_BEGINS), f"rows{ending} {how}", out)


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return str(value)
    return "{}" if isinstance(value, dict) or value is None else json.dumps(value)


@cache
def fonts() -> Path:
    """Return a directory with a small font of each kind: f.otf, f.ttf, f.woff, f.ttc."""
    directory = models() / "fonts"
    directory.mkdir()
    noto = TTFont(default_font().path)
    options = Options()
    options.notdef_outline = True
    subsetter = Subsetter(options)
    subsetter.populate(text=CHARACTERS)
    subsetter.subset(noto)
    noto.save(directory / "f.otf")
    noto = TTFont(directory / "f.otf")
    noto.flavor = "woff"
    noto.save(directory / "f.woff")
    font_files.font_file(directory / "f.ttf", dict.fromkeys(CHARACTERS[:12], font_files.SQUARE))
    collection = TTCollection()
    collection.fonts = [TTFont(directory / "f.otf"), TTFont(directory / "f.ttf")]
    collection.save(directory / "f.ttc")
    (directory / "characters.txt").write_text(CHARACTERS[:6] + "一", encoding="utf-8")
    font_files.inflating_file(directory / "inflating.woff", 2 << 30)
    font_files.composites_file(directory / "composites.ttf", 4, 24)
    font_files.subroutines_file(directory / "subroutines.otf", 60, 9)
    font_files.endless_collection_file(directory / "endless.ttc", 65_000)
    return directory


def font(rng: random.Random, directory: Path) -> Case:
    """A font with damaged tables, through `glyphcrm atlas build`."""
    ending = rng.choice(("otf", "ttf", "woff", "ttc"))
    content = (fonts() / f"f.{ending}").read_bytes()
    about = f"damaged .{ending}"
    if ending in ("otf", "ttf") and rng.random() < 0.7:
        tables = _tables(content)
        tag = rng.choice(sorted(tables))
        body = tables[tag]
        tables[tag] = rng.choice(
            (damaged(rng, body), b"", body[: rng.randrange(len(body) + 1)], rng.randbytes(len(body)))
        )
        content, about = _sfnt(tables, content[:4]), f".{ending} {tag!r}"
    else:
        content = damaged(rng, content)
    if rng.random() < 0.02:
        hostile = rng.choice(("inflating.woff", "composites.ttf", "subroutines.otf", "endless.ttc"))
        content, about = (fonts() / hostile).read_bytes(), hostile
    path = directory / f"font.{ending}"
    path.write_bytes(content)
    face = f"#{rng.choice(('Noto Serif SC', '0', '1', '7', 'x', ''))}" if ending == "ttc" else ""
    out = directory / "atlas.safetensors"
    words = ["atlas", "build", "--font", f"{path}{face}", "--characters", str(fonts() / "characters.txt")]
    return Case(partial(main, [*words, "--no-input-only", "--out", str(out)]), about, out)


def _tables(content: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack(">H", content[4:6])
    records = [struct.unpack(">4sIII", content[12 + 16 * i : 28 + 16 * i]) for i in range(count)]
    return {tag: content[start : start + length] for tag, _, start, length in records}


def _sfnt(tables: dict[bytes, bytes], version: bytes) -> bytes:
    directory, bodies = b"", b""
    for tag, body in sorted(tables.items()):
        start = 12 + 16 * len(tables) + len(bodies)
        directory += struct.pack(">4sIII", tag, 0, start, len(body))
        bodies += body + bytes(-len(body) % 4)
    return version + struct.pack(">HHHH", len(tables), 16, 0, 0) + directory + bodies


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, depth: int, colour: int, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width % 2**32, height % 2**32, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(20_000)))


def picture(rng: random.Random, directory: Path) -> Case:
    """A picture of a character, through `glyphcrm atlas add --png`."""
    sink = io.BytesIO()
    image = Image.new("L", (64, 64), 255)
    image.paste(0, (10, 20, 50, 30))
    image.convert(rng.choice(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))).save(sink, "PNG")
    content, how = sink.getvalue(), rng.randrange(6)
    if how == 0:
        content = damaged(rng, content)
    elif how == 1:
        sizes = (0, 1, 48, 4096, 4097, 50_000, 2**31 - 1, 2**32 - 1)
        content = _png(
            rng.choice(sizes), rng.choice(sizes), rng.choice((1, 8, 16, 255)), rng.randrange(8), rng.randrange(3)
        )
    elif how == 2:
        kind = rng.choice((b"zTXt", b"iCCP", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"PLTE", b"tRNS", b"fdAT"))
        body = rng.choice((b"", rng.randbytes(30), b"x\0\0" + zlib.compress(bytes(64 << 20), 1), b"x\0\1\0\0\0"))
        content = content[:33] + _chunk(kind, body) * rng.choice((1, 20)) + content[33:]
    elif how == 3:
        other = io.BytesIO()
        Image.new("RGB", (48, 48)).save(other, rng.choice(("JPEG", "GIF", "BMP", "TIFF", "PPM")))
        content = other.getvalue()
    elif how == 4:
        content = rng.choice((b"", b"\x89PNG\r\n\x1a\n", rng.randbytes(4000), b"<svg/>", bytes((1 << 24) + 1)))
    path = directory / "picture.png"
    path.write_bytes(content)
    names = ("龟", "U+9F9F", "U+20BB7", "", "ab", "U+110000", "U+D800", "天", " ", "U+0", "﷽", "U+F900")
    character = rng.choice(names[:3]) if rng.random() < 0.8 else rng.choice(names)
    place = rng.choice((directory, "/dev/zero", "/dev/null", "", "missing.png")) if rng.random() < 0.05 else path
    out = directory / "out"
    words = ["atlas", "add", "--png", f"{character}={place}", "--model", str(models() / "glyphcrm"), "--out", str(out)]
    return Case(partial(main, words), f"picture {how}", out)
