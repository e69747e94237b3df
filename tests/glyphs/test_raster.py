from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from glyphcrm.errors import UserError
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.glyphs.raster import Rasterizer, pack, unpack
from tests.glyphs.font_files import SQUARE, font_file

CHARACTERS = Path(__file__).parents[2].parent / "shared" / "data" / "characters"


@pytest.fixture(scope="module")
def rasterizer(noto):
    return Rasterizer(noto)


def ink_box(image):
    """Return left, top, right, bottom of the ink."""
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def large_drawing(font, char):
    """Draw `char` in the middle of a canvas that nothing leaves; threshold in NumPy."""
    canvas = Image.new("L", (400, 400))
    ImageDraw.Draw(canvas).text((200, 200), char, font=font.sized(46), fill=255, anchor="ms")
    return np.asarray(canvas) >= 128


def test_the_baseline_centres_the_ink_of_han(noto, rasterizer):
    assert rasterizer.baseline == 41
    han = [chr(point) for point in range(0x4E00, 0xA000, 41)]
    boxes = np.array([ink_box(rasterizer.draw(char)) for char in han])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert np.abs(centres.mean(0) - 24).max() < 0.5
    assert (np.abs(centres - 24) < 1.5).mean() > 0.9


def test_the_baseline_follows_the_ink_and_not_the_metrics(tmp_path):
    low = open_font(font_file(tmp_path / "low.ttf", {"一": (0, -500, 1000, 300), "x": (0, 0, 10, 999)}))
    assert Rasterizer(low).baseline in (19, 20)  # the ink's centre is a tenth of 46 px higher
    blank = open_font(font_file(tmp_path / "blank.ttf", {"一": (0, 0, 0, 0)}))
    assert not Rasterizer(blank).draw("一").any()


def test_nothing_is_clipped(noto, rasterizer):
    sample = [
        *map(chr, range(0x4E00, 0xA000, 97)),
        *"一口龘，。“”Wg@—…·.ＡＷ《（Ǻ｜￣＿",
        *map(chr, range(0x3041, 0x3100)),
    ]
    fitting = 0
    for char in filter(noto.covers, sample):
        expected = large_drawing(noto, char)
        left, top, right, bottom = ink_box(expected)
        if max(right - left, bottom - top) <= 48:
            fitting += 1
            image = rasterizer.draw(char)
            x0, y0, x1, y1 = ink_box(image)
            np.testing.assert_array_equal(image[y0:y1, x0:x1], expected[top:bottom, left:right], char)
    assert fitting > 0.98 * len(sample)


def test_characters_stand_on_the_baseline(rasterizer):
    full_stop, middle_dot = rasterizer.draw("."), rasterizer.draw("·")
    assert (full_stop != middle_dot).any()
    assert ink_box(full_stop)[1] > 30 > ink_box(middle_dot)[3]
    assert ink_box(rasterizer.draw("，"))[1] > 30  # low and left, as mainland China sets it
    assert ink_box(rasterizer.draw("，"))[2] < 20
    assert ink_box(rasterizer.draw("“"))[3] < 20
    assert ink_box(rasterizer.draw("W"))[3] in (41, 42)
    assert ink_box(rasterizer.draw("g"))[3] > 46


@pytest.mark.parametrize("box", [(900, 0, 1500, 400), (-700, 0, -100, 400), (0, 900, 600, 1300), (0, -900, 600, -500)])
def test_ink_outside_the_cell_is_moved_in_by_the_least_and_not_shrunk(tmp_path, box):
    font = open_font(font_file(tmp_path / "outside.ttf", {"一": SQUARE, "二": SQUARE, "三": SQUARE, "四": box}))
    image = Rasterizer(font).draw("四")
    assert image.sum() == large_drawing(font, "四").sum()
    left, top, right, bottom = ink_box(image)
    assert 0 in (left, top, 48 - right, 48 - bottom)
    assert 0.01 < image.mean() < 0.3


@pytest.mark.parametrize("box", [(0, 0, 2000, 100), (-500, -2000, 2000, 3000), (5000, 0, 8000, 1000)])
def test_ink_larger_than_the_cell_is_shrunk_into_it(tmp_path, box):
    font = open_font(font_file(tmp_path / "large.ttf", {"一": SQUARE, "二": SQUARE, "三": box}))
    left, top, right, bottom = ink_box(Rasterizer(font).draw("三"))
    assert 40 <= max(right - left, bottom - top) <= 48


def test_an_absurdly_large_glyph_is_an_error(tmp_path):
    font = open_font(font_file(tmp_path / "absurd.ttf", {"一": (-15000, -15000, 15000, 15000)}))
    with pytest.raises(UserError, match="cannot draw '一'"):
        Rasterizer(font).draw("一")


def test_a_character_that_the_cmap_lacks_is_an_error(rasterizer):
    with pytest.raises(UserError, match=r"U\+20BB7"):
        rasterizer.draw("𠮷")


def test_labels_are_small_letters_and_padding_is_blank(tmp_path, rasterizer):
    assert not rasterizer.draw("[PAD]").any()
    drawn = [rasterizer.draw(f"[{name}]") for name in ("UNK", "CLS", "SEP", "MASK")]
    for image in drawn:
        left, top, right, bottom = ink_box(image)
        assert abs((left + right) / 2 - 24) <= 1 >= abs((top + bottom) / 2 - 24)
        assert right - left <= 46
        assert bottom - top < 24
    assert len({image.tobytes() for image in drawn}) == 4
    han_only = open_font(font_file(tmp_path / "han.ttf", {"一": SQUARE}))
    with pytest.raises(UserError, match="lacks letters"):
        Rasterizer(han_only).draw("[UNK]")
    with pytest.raises(UserError, match="does not fit"):
        rasterizer.draw(f"[{'W' * 200}]")


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(0, 4), st.just(48), st.just(48)), elements=st.integers(0, 1)))
def test_unpack_undoes_pack(images):
    packed = pack(images)
    assert packed.shape == (len(images), 288)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack(packed), images)


def test_bits_go_by_rows_and_the_high_bit_is_left():
    image = np.zeros((48, 48), np.uint8)
    image[1, 0] = image[2, 9] = 1
    assert np.flatnonzero(pack(image)).tolist() == [6, 13]
    assert pack(image)[[6, 13]].tolist() == [128, 64]


def test_the_released_bitmaps_are_packed_and_turned_the_same_way(rasterizer):
    bitmaps, vocabulary = (
        CHARACTERS / "glyphcrm-release-bitmaps.npz",
        CHARACTERS / "glyphcrm-release-vocab.txt",
    )
    if not bitmaps.exists():
        pytest.skip("the released bitmaps are not at hand")
    tokens = vocabulary.read_text(encoding="utf-8").split("\n")
    released = unpack(np.load(bitmaps)["bitmaps"])

    def overlap(a, b):
        return (a & b).sum() / (a | b).sum()

    han = [t for t in tokens if len(t) == 1 and "一" <= t <= "鿿"][:400]
    pairs = [(rasterizer.draw(char), released[tokens.index(char)]) for char in han]
    upright = np.mean([overlap(ours, theirs) for ours, theirs in pairs])
    for turned in (np.transpose, np.flipud, np.fliplr, np.rot90):
        assert upright > 1.5 * np.mean([overlap(ours, turned(theirs)) for ours, theirs in pairs])
