from dataclasses import replace

import pytest
import torch

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.cli.atlas import parse
from glyphcrm.errors import UserError
from glyphcrm.glyphs import fonts
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.drawing import LABEL_SOURCE
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.glyphs.font_files import SQUARE, font_file


def run(*arguments):
    return parse(list(map(str, arguments)), "glyphcrm atlas")()


def test_build_from_text_and_show(tmp_path, capsys, monkeypatch):
    few = replace(fonts.default_font(), coverage=frozenset(map(ord, "好文人〇UNKCLSEPMA")))
    monkeypatch.setattr(fonts, "default_font", lambda: few)
    text, out, sheet = tmp_path / "text.txt", tmp_path / "atlas.safetensors", tmp_path / "sheet.png"
    text.write_text("好好好\n中中 文\n🀀🀀🀀🀀", encoding="utf-8")
    font = font_file(tmp_path / "user.ttf", {"中": SQUARE, "𠮷": SQUARE})
    options = ("--font", font, "--vocabulary-size", 7)
    assert run("build", "--out", out, "--text", text, text, *options, "--no-input-only") == 0
    assert GlyphAtlas.load(out).tokens == (*SPECIAL_TOKENS, "好", "中")
    with pytest.raises(UserError, match="--force"):
        run("build", "--out", out, "--text", text, *options)
    with pytest.raises(UserError, match="folder does not exist"):
        run("build", "--out", tmp_path / "absent" / "atlas.safetensors", "--text", text)
    run("build", "--out", out, "--text", text, *options, "--force")
    assert GlyphAtlas.load(out).tokens == (*SPECIAL_TOKENS, "好", "中", *"ACEKLMNPSU", *"〇人文𠮷")
    printed = capsys.readouterr().out
    assert "21 rows = 7 of the vocabulary + 14 input-only" in printed
    for line in (
        "       2 Made Up Regular 1.500",
        f"       5 {LABEL_SOURCE}",
        "      14 Noto Serif SC Regular",
    ):
        assert line in printed
    assert run("show", "中🀀", "--atlas", out, "--out", sheet) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "中 U+4E2D row 6      Made Up Regular 1.500",
        "🀀 U+1F000 no picture",
    ]
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert run("show", "中🀀") == 0
    other = font_file(tmp_path / "other.ttf", {"好": SQUARE}, family="Other")
    capsys.readouterr()
    assert run("show", "好中🀀", "--atlas", out, "--out", sheet, "--train-font", other, "--train-font", font) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "Other Regular 1.500: has no '中 U+4E2D'",
        "Made Up Regular 1.500: has no '好 U+597D'",
        f"{sheet}: written",
    ]


def test_build_from_a_list_of_characters(tmp_path):
    listed, out = tmp_path / "list.txt", tmp_path / "atlas.safetensors"
    listed.write_text("\ufeff[PAD]\r\n[UNK]\n文\ne\n\u0301\n中文字，\n", encoding="utf-8")
    assert run("build", "--out", out, "--characters", listed, "--no-input-only") == 0
    assert GlyphAtlas.load(out).tokens == (*SPECIAL_TOKENS, *"文e\u0301中字，")


@pytest.mark.parametrize("option", ["--text", "--characters"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"\n \r\n", "characters; give"),
        ("中文\n".encode() * 700_000 + b"\xe4\xb8", "not UTF-8 at byte 4900000"),
        ("中文".encode("utf-16"), "not UTF-8 at byte 0; it looks like UTF-16"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, option, content, complaint):
    path = tmp_path / "input.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"input.txt.*{complaint}"):
        run("build", "--out", tmp_path / "atlas.safetensors", option, path)


def test_characters_that_no_font_has_are_named(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("中🀀", encoding="utf-8")
    with pytest.raises(UserError, match=r"🀀 \(U\+1F000\)"):
        run("build", "--out", tmp_path / "atlas.safetensors", "--characters", path)


def test_the_nearest_characters_are_those_of_the_models_own_vectors(model, tokenizer, tmp_path, capsys):
    with torch.no_grad():  # a new model's vectors hardly differ
        model.glyphcrm.hanglyph.vector.weight.normal_(0, 1)
    save_checkpoint(model, tokenizer, tmp_path / "model")
    words = ("--model", tmp_path / "model")
    assert run("nearest", "天地天", *words, "--top", 3) == 0
    printed = capsys.readouterr().out.splitlines()
    base = model.eval().glyphcrm
    vectors = base.hanglyph(torch.arange(len(tokenizer.tokens)), base.glyph_table.bitmaps).vector.detach().double()
    vectors -= vectors.mean(0)
    for char, lines in (("天", printed[:4]), ("地", printed[4:])):
        own = vectors[tokenizer.tokens.index(char)]
        cosines = torch.cosine_similarity(vectors, own[None])
        assert lines[0] == f"{char} U+{ord(char):04X}" and len(lines) == 4
        order = [token for token in (tokenizer.tokens[i] for i in cosines.argsort(descending=True)) if token != char]
        assert [line.split()[1] for line in lines[1:]] == order[:3]
        found = [cosines[tokenizer.tokens.index(token)].item() for token in order[:3]]
        assert [float(line.split()[0]) for line in lines[1:]] == pytest.approx(found, abs=1e-3)
    for text, more, complaint in (
        ("\u3000", (), "no characters"),
        ("🀀", (), "U\\+1F000"),
    ):
        with pytest.raises(UserError, match=complaint):
            run("nearest", text, *words, *more)
