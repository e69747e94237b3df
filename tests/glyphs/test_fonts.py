import shutil
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glyphcrm.errors import UserError
from glyphcrm.glyphs import fonts
from glyphcrm.glyphs.font_file import read_font
from glyphcrm.glyphs.fonts import font_chain, open_font, system_fonts
from glyphcrm.glyphs.han import is_han
from glyphcrm.glyphs.raster import Rasterizer
from tests.glyphs.font_files import SQUARE, collection_file, font_file


@pytest.fixture
def font_path(tmp_path):
    return font_file(tmp_path / "plain.ttf", {"一": SQUARE, "𠮷": SQUARE})


def refused(spec, **options):
    """Return the message with which `open_font` refuses `spec`."""
    with pytest.raises(UserError) as caught:
        open_font(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(spec).partition("#")[0] in message
    return message


def test_a_font_knows_its_name_and_its_characters(font_path):
    font = open_font(font_path)
    assert font.name == "Made Up Regular 1.500"
    assert font.coverage == {0x4E00, 0x20BB7}
    assert font.covers("𠮷")
    assert not font.covers("二")
    assert open_font(f"{font_path}#made up") == font


def test_the_default_font_has_the_han_of_the_basic_plane(noto):
    assert noto.name == "Noto Serif SC Regular 2.003"
    assert noto.coverage >= {*range(0x4E00, 0xA000), *range(0x3400, 0x4DC0)}
    compatibility = {*range(0xF900, 0xFB00), *range(0x2F800, 0x2FA20)} - {
        *(0xFA0E, 0xFA0F, 0xFA11, 0xFA13, 0xFA14, 0xFA1F, 0xFA21, 0xFA23, 0xFA24, 0xFA27, 0xFA28, 0xFA29)
    }
    han = {point for point in noto.coverage if is_han(point)} - compatibility - {ord("〇")}
    assert len(han) == 27_809


@pytest.mark.parametrize("content", [b"", b"ttcf", b"OTTO", b"not a font at all " * 50, bytes(4096)])
def test_files_that_are_no_fonts_are_refused(tmp_path, content):
    path = tmp_path / "DejaVuSans.ttf"  # also the name of a font that many systems have
    path.write_bytes(content)
    assert "not a TrueType or OpenType font" in refused(path)


def test_missing_files_and_directories_are_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "gone.otf")
    assert "no such file" in refused(tmp_path)
    assert "no such file" in refused(f"{tmp_path / 'gone.ttc'}#Family")


def test_a_truncated_font_is_refused_wherever_it_ends(font_path):
    content = font_path.read_bytes()
    last = max(sum(struct.unpack(">LL", content[20 + 16 * i : 28 + 16 * i])) for i in range(content[5]))
    for end in range(0, last, 7):
        font_path.write_bytes(content[:end])
        with pytest.raises(UserError, match="truncated"):
            read_font(font_path, None, 400)


@pytest.mark.parametrize("table", ["CBDT", "COLR", "sbix", "SVG "])
def test_colour_fonts_are_refused(tmp_path, table):
    path = font_file(tmp_path / "colour.ttf", {"一": SQUARE}, table=table)
    assert f"colour font (table {table.strip()})" in refused(path)


def test_a_font_without_characters_is_refused(tmp_path):
    assert "no Unicode characters" in refused(font_file(tmp_path / "none.ttf", {}))


def test_a_font_that_freetype_refuses_is_not_replaced_by_a_system_font(tmp_path):
    path = font_file(tmp_path / "DejaVuSans.ttf", {"一": SQUARE})
    path.write_bytes(path.read_bytes().replace(b"head", b"hxxd", 1))
    assert "FreeType cannot read it" in refused(path)


def test_a_character_mapped_to_the_missing_glyph_is_not_covered(tmp_path):
    from fontTools.ttLib import TTFont

    path = font_file(tmp_path / "tofu.ttf", {"一": SQUARE, "𠮷": SQUARE})
    font = TTFont(path)
    for table in font["cmap"].tables:
        if 0x20BB7 in table.cmap:
            table.cmap[0x20BB7] = ".notdef"
    font.save(path)
    assert open_font(path).coverage == {0x4E00}


def test_the_weight_of_a_variable_font_is_set(tmp_path):
    axes = (("wdth", 50, 100, 200), ("wght", 100, 100, 900))
    path = font_file(tmp_path / "variable.ttf", {"一": (100, 0, 400, 800)}, axes=axes)
    ink = [int(Rasterizer(open_font(path, weight=weight)).draw("一").sum()) for weight in (100, 400, 900)]
    assert ink[0] < ink[1] < ink[2]
    assert open_font(path).name.endswith("1.500 wght=400")
    assert open_font(path).axes == (100, 400)
    assert "from 100 to 900" in refused(path, weight=901)
    assert "from 100 to 900" in refused(path, weight=float("nan"))


def test_a_variable_font_without_a_weight_axis_is_refused(tmp_path):
    path = font_file(tmp_path / "width.ttf", {"一": SQUARE}, axes=(("wdth", 50, 100, 200),))
    assert "without a weight axis (axes: wdth)" in refused(path)


def test_a_face_of_a_collection_is_chosen_by_family(tmp_path):
    members = [
        font_file(tmp_path / "a.ttf", {"一": SQUARE}, family="Song One"),
        font_file(tmp_path / "b.ttf", {"二": SQUARE}, family="Song Two"),
    ]
    path = collection_file(tmp_path / "both#1.ttc", members)
    assert open_font(f"{path}#song two").coverage == {0x4E8C}
    assert open_font(f"{path}#Song One").name == "Song One Regular 1.500"
    assert Rasterizer(open_font(f"{path}#Song Two")).draw("二").any()
    assert "both#1.ttc#NAME with one of: 'Song One', 'Song Two'" in refused(path)
    with pytest.raises(UserError, match="0 faces are called 'Kai'"):
        open_font(f"{path}#Kai")
    twice = collection_file(tmp_path / "twice.ttc", [members[0], members[0]])
    assert "2 faces are called" in refused(f"{twice}#Song One")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_corrupted_font_never_raises_anything_but_a_user_error(tmp_path, data):
    path = font_file(tmp_path / "damaged.ttf", {"一": SQUARE, "𠮷": SQUARE})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(UserError):
        font = read_font(path, None, 400)
        for point in sorted(font.coverage)[:3]:
            Rasterizer(font).draw(chr(point))


def test_the_chain_is_the_users_then_the_default_then_the_systems(tmp_path, monkeypatch, font_path, noto):
    folder = tmp_path / "fonts" / "deep"
    folder.mkdir(parents=True)
    for name in ("HanaMinB.ttf", "BabelStoneHan.ttf", "Other.ttf"):
        shutil.copy(font_path, folder / name)
    (folder / "HanaMinA.ttf").write_bytes(b"broken")
    monkeypatch.setattr(fonts, "SYSTEM_FONT_DIRECTORIES", (tmp_path / "fonts", tmp_path / "absent"))
    assert [font.path.name for font in system_fonts()] == ["BabelStoneHan.ttf", "HanaMinB.ttf"]
    user = open_font(font_path)
    chain = font_chain([user])
    assert chain[:2] == [user, noto]
    assert [font.system for font in chain] == [False, False, True, True]


def test_the_advice_about_a_collection_works(tmp_path):
    def member(name, **names):
        return font_file(tmp_path / f"{name}.ttf", {name: SQUARE}, **names)

    members = [
        member("一", family="Song"),
        member("二", family="Song", style="Bold"),
        member("三", family="Kai"),
        member("四", family="Twin", style="Light"),
        member("五", family="Twin", style="Light"),
        member("六", family="Long " * 20),
        member("七", family="A#B"),
    ]
    path = collection_file(tmp_path / "Weights.ttc", members)
    names = ["Song Regular", "Song Bold", "Kai", "3", "4", "5", "6"]
    assert refused(path).endswith("with one of: " + ", ".join(map(repr, names)))
    for name, char in zip(names, "一二三四五六七", strict=True):
        assert open_font(f"{path}#{name}").coverage == {ord(char)}
    assert "2 faces are called 'Song'; write Weights.ttc#NAME" in refused(f"{path}#Song")
    assert "0 faces are called '7'" in refused(f"{path}#7")
