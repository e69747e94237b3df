import numpy as np
import pytest
from PIL import Image

from glyphcrm.errors import UserError
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.glyphs.sheet import contact_sheet, save_sheet
from tests.glyphs.font_files import SQUARE, font_file


def test_a_sheet_shows_the_pictures_and_marks_the_missing(small_atlas):
    sheet = np.asarray(contact_sheet("中𠮷中", small_atlas))
    dark = (sheet < 60).all(-1)
    red = (sheet[..., 0] > 150) & (sheet[..., 1] < 80)
    middle = sheet.shape[1] // 2
    picture = np.kron(small_atlas.pictures(small_atlas.rows["中"]), np.ones((2, 2), np.uint8))
    assert dark[:, :middle].sum() == picture.sum()
    top, left = np.argwhere(dark).min(0) - np.argwhere(picture).min(0)
    np.testing.assert_array_equal(dark[top : top + 96, left : left + 96], picture)
    assert not dark[:, middle:].any()
    assert red[:, middle:].any()
    assert not red[:, :middle].any()


def test_a_sheet_of_fonts_has_a_row_for_each_and_pale_pictures_where_one_lacks_a_character(tmp_path, small_atlas):
    font = open_font(font_file(tmp_path / "user.ttf", {"文": SQUARE}))
    own = small_atlas.of("中文")
    sheet = np.asarray(contact_sheet("中文", own, {font.name: own.redrawn(font)}))
    pitch, left = 110, 14
    found = {}
    for name, ink in (("black", (20, 20, 20)), ("pale", (195, 189, 178))):
        is_ink = (sheet == ink).all(-1)
        for column, char in enumerate("中文"):
            cells = is_ink[:, left + column * pitch :][:, :96]
            tops = np.flatnonzero(cells.any(1))
            found[name, char] = cells.sum() // 4, 0 if not len(tops) else tops[0] > sheet.shape[0] // 2
    ink = {char: small_atlas.pictures(small_atlas.rows[char]).sum() for char in "中文"}
    assert found["black", "中"] == (ink["中"], False) and found["pale", "中"] == (ink["中"], True)
    assert found["black", "文"][0] == ink["文"] + own.redrawn(font).pictures(1).sum() and found["pale", "文"][0] == 0


def test_a_sheet_grows_by_rows(small_atlas):
    one, many = contact_sheet(["[UNK]"], small_atlas), contact_sheet(map(chr, range(100, 125)), small_atlas)
    assert one.size < many.size
    assert contact_sheet(map(chr, range(100, 112)), small_atlas).width == many.width


@pytest.mark.parametrize("text", ["", list(map(chr, range(0x4E00, 0x4E00 + 4097)))])
def test_too_few_and_too_many_characters_are_refused(small_atlas, text):
    with pytest.raises(UserError, match="1 to 4096"):
        contact_sheet(text, small_atlas)


def test_a_sheet_is_written_as_png(tmp_path, small_atlas):
    sheet = contact_sheet("中文", small_atlas)
    save_sheet(sheet, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.tobytes() == sheet.tobytes()
    for bad in ("sheet.jpg", "absent/sheet.png"):
        with pytest.raises(UserError, match="sheet"):
            save_sheet(sheet, tmp_path / bad)
