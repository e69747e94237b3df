import copy
import errno
import json
import os
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas, bitmaps_digest, tokens_digest
from glyphcrm.glyphs.drawing import LABEL_SOURCE
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.glyphs.raster import Rasterizer, pack
from tests.glyphs.font_files import SQUARE, font_file

code_points = st.integers(0, 0x10FFFF).filter(lambda p: not 0xD800 <= p <= 0xDFFF).map(chr)
special = st.from_regex(r"\[[A-Z]{1,6}[0-9]?\]", fullmatch=True)
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def atlases(draw):
    tokens = tuple(draw(st.lists(code_points | special, unique=True, max_size=8)))
    fonts = tuple(draw(st.lists(st.text(code_points, max_size=6), unique=True, min_size=1, max_size=4)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    bitmaps = random.integers(0, 256, (len(tokens), 288), np.uint8)
    return GlyphAtlas(tokens, bitmaps, fonts, random.integers(0, len(fonts), len(tokens), np.uint8))


def assert_equal(left, right):
    assert (left.tokens, left.fonts) == (right.tokens, right.fonts)
    np.testing.assert_array_equal(left.bitmaps, right.bitmaps)
    np.testing.assert_array_equal(left.sources, right.sources)


def test_rows_are_the_pictures_of_their_tokens(noto, small_atlas):
    rasterizer = Rasterizer(noto)
    assert len(small_atlas) == 7
    assert small_atlas.rows["文"] == 3
    np.testing.assert_array_equal(small_atlas.pictures([3, 4])[0], rasterizer.draw("文"))
    np.testing.assert_array_equal(small_atlas.pictures(1), rasterizer.draw("[UNK]"))
    assert small_atlas.pictures([[0, 1, 2]]).shape == (1, 3, 48, 48)
    assert not small_atlas.pictures(0).any()


def test_each_row_is_drawn_by_the_first_font_that_has_it(tmp_path, noto):
    user = open_font(font_file(tmp_path / "user.ttf", {"文": SQUARE, "𠮷": SQUARE}))
    atlas = GlyphAtlas.build(["[CLS]", *"中文𠮷"], [user, noto])
    assert [atlas.fonts[i] for i in atlas.sources] == [LABEL_SOURCE, noto.name, user.name, user.name]
    np.testing.assert_array_equal(atlas.pictures(2), Rasterizer(user).draw("文"))


def test_redrawn_rows_are_the_fonts_and_the_others_stay(tmp_path, noto, small_atlas):
    font = open_font(font_file(tmp_path / "user.ttf", {"文": SQUARE, "中": None, "𠮷": SQUARE, "U": SQUARE}))
    atlas = small_atlas.redrawn(font)
    assert atlas.tokens == small_atlas.tokens
    np.testing.assert_array_equal(atlas.pictures(3), Rasterizer(font).draw("文"))
    changed = (atlas.bitmaps != small_atlas.bitmaps).any(1)
    assert changed.tolist() == [row == 3 for row in range(7)]
    assert [atlas.fonts[i] for i in atlas.sources] == [LABEL_SOURCE] * 2 + [noto.name, font.name] + [noto.name] * 3
    assert_equal(atlas.of("文A"), GlyphAtlas(("文", "A"), atlas.bitmaps[[3, 6]], atlas.fonts, atlas.sources[[3, 6]]))
    with pytest.raises(UserError, match=r"none of the characters \(.*without ink"):
        small_atlas.redrawn(open_font(font_file(tmp_path / "blank.ttf", {"文": None})))


def test_characters_that_no_font_has_are_listed(noto):
    with pytest.raises(UserError) as caught:
        GlyphAtlas.build(["中", *map(chr, range(0x20000, 0x20009)), "文"], [noto])
    message = str(caught.value)
    assert message.count("U+") == 5
    assert "𠀀 (U+20000)" in message
    assert message.endswith("Noto Serif SC Regular 2.003")


def test_an_atlas_does_not_change(small_atlas):
    with pytest.raises(ValueError, match="read-only"):
        small_atlas.bitmaps[0] = 1
    bitmaps = np.zeros((1, 288), np.uint8)
    atlas = GlyphAtlas(("中",), bitmaps, ("x",), np.zeros(1, np.uint8))
    bitmaps[:] = 255
    assert not atlas.pictures(0).any()
    for twin in (copy.deepcopy(small_atlas), pickle.loads(pickle.dumps(small_atlas))):
        assert_equal(twin, small_atlas)
        assert not twin.bitmaps.flags.writeable


@pytest.mark.parametrize(
    ("tokens", "shape", "source", "complaint"),
    [
        (("中", "中"), (2, 288), 0, "'中' has 2 rows"),
        (("中文",), (1, 288), 0, "neither one code point"),
        (("",), (1, 288), 0, "neither one code point"),
        (("\ud800",), (1, 288), 0, "surrogate"),
        (("中",), (2, 288), 0, "bitmaps of 1 tokens"),
        (("中",), (1, 48), 0, "bitmaps of 1 tokens"),
        (("中",), (1, 288), 1, "source 1 is none"),
    ],
)
def test_what_does_not_fit_together_is_refused(tokens, shape, source, complaint):
    sources = np.full(len(tokens), source, np.uint8)
    with pytest.raises(UserError, match=complaint):
        GlyphAtlas(tokens, np.zeros(shape, np.uint8), ("x",), sources)


def test_rows_are_added_behind_and_none_changes(noto, small_atlas):
    more = small_atlas.extended(GlyphAtlas.build([*"好文人"], [noto]))
    assert more.tokens == (*small_atlas.tokens, "好", "人")
    np.testing.assert_array_equal(more.bitmaps[:7], small_atlas.bitmaps)
    np.testing.assert_array_equal(more.pictures(8), Rasterizer(noto).draw("人"))
    assert more.fonts == small_atlas.fonts
    picture = np.eye(48, dtype=np.uint8)
    most = more.append(["𠮷"], pack(picture[None]), "imported")
    np.testing.assert_array_equal(most.pictures(most.rows["𠮷"]), picture)
    assert most.fonts[most.sources[-1]] == "imported"
    assert most.fonts[most.sources[-2]] == noto.name
    with pytest.raises(UserError, match="'文' has 2 rows"):
        most.append(["文"], pack(picture[None]), "imported")


def test_digests_tell_order_and_every_bit(small_atlas):
    assert tokens_digest(small_atlas.tokens) == tokens_digest(list(small_atlas.tokens))
    assert tokens_digest(["a", "b"]) != tokens_digest(["b", "a"]) != tokens_digest(["ba"])
    changed = small_atlas.bitmaps.copy()
    changed[3, 7] ^= 1
    assert bitmaps_digest(changed) != bitmaps_digest(small_atlas.bitmaps)
    assert bitmaps_digest(small_atlas.bitmaps[::2]) == bitmaps_digest(small_atlas.bitmaps[::2].copy())


@quick
@given(atlas=atlases())
def test_a_file_holds_the_whole_atlas(tmp_path, atlas):
    path = tmp_path / "atlas.safetensors"
    atlas.save(path)
    assert_equal(GlyphAtlas.load(path), atlas)
    content = path.read_bytes()
    GlyphAtlas.load(path).save(path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


@quick
@given(atlas=atlases(), data=st.data())
def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path, atlas, data):
    path = tmp_path / "atlas.safetensors"
    atlas.save(path)
    content = path.read_bytes()
    for _ in range(20):
        position = data.draw(st.integers(0, len(content) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda b, old=content[position]: b != old))
        path.write_bytes(content[:position] + bytes([byte]) + content[position + 1 :])
        if content[position] == 0x20 and byte in b"\t\n\r":
            continue  # padding of the header: no content
        with pytest.raises(UserError) as caught:
            GlyphAtlas.load(path)
        assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, small_atlas):
    path = tmp_path / "atlas.safetensors"
    small_atlas.save(path)
    content = path.read_bytes()
    for end in [*range(40), *range(40, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="truncated"):
            GlyphAtlas.load(path)


def test_foreign_files_are_refused(tmp_path, small_atlas):
    with pytest.raises(UserError, match="no such atlas"):
        GlyphAtlas.load(tmp_path / "gone.safetensors")
    path = tmp_path / "foreign.safetensors"
    tensors = {"bitmaps": small_atlas.bitmaps, "sources": small_atlas.sources}
    head = {"format": 1, "tokens": ["中"] * 7, "fonts": ["x"]}
    for content, metadata in (
        ({"weight": np.zeros(3, np.float32)}, None),
        (tensors, None),
        (tensors, {"glyph_atlas": "{"}),
        (tensors, {"glyph_atlas": "[1]"}),
        (tensors, {"glyph_atlas": "[" * 100_000}),
        (tensors, {"glyph_atlas": json.dumps({**head, "format": 2})}),
        (tensors, {"glyph_atlas": json.dumps({**head, "tokens": 7})}),
        (tensors, {"glyph_atlas": json.dumps({**head, "fonts": ["\ud800"]})}),
        (tensors, {"glyph_atlas": json.dumps({**head, "tokens": ["中"]})}),
        ({**tensors, "bitmaps": small_atlas.bitmaps.astype(np.int16)}, {"glyph_atlas": json.dumps(head)}),
    ):
        safetensors.numpy.save_file(content, path, metadata)
        with pytest.raises(UserError, match=r"not a glyph atlas|damaged"):
            GlyphAtlas.load(path)
    with pytest.raises(UserError, match="not a glyph atlas"):
        GlyphAtlas.load(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, small_atlas, call):
    path = tmp_path / "atlas.safetensors"
    small_atlas.save(path)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match="No space left on device"):
        small_atlas.extended(small_atlas.append(["好"], np.zeros((1, 288), np.uint8), "x")).save(path)
    assert_equal(GlyphAtlas.load(path), small_atlas)
    assert os.listdir(tmp_path) == [path.name]


def test_a_full_disk_for_real(tmp_path, small_atlas):
    """The system refuses to write more than 1 KiB; the old file stays and no new one is left."""
    path = tmp_path / "atlas.safetensors"
    small_atlas.save(path)
    program = (
        "import sys; from glyphcrm.errors import UserError; from glyphcrm.glyphs.atlas import GlyphAtlas\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: GlyphAtlas.load(sys.argv[1]).save(sys.argv[1])\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
    )
    assert "File too large" in done.stdout, done.stderr
    assert_equal(GlyphAtlas.load(path), small_atlas)
    assert os.listdir(tmp_path) == [path.name]


def test_a_placeholder_without_ink_is_drawn_by_the_next_font(tmp_path, noto):
    letters = dict.fromkeys("UNKCLSEPMA", None)
    user = open_font(font_file(tmp_path / "user.ttf", {"天": SQUARE, "文": None, "𠮷": None, **letters}))
    atlas = GlyphAtlas.build(["[PAD]", "[UNK]", *"天文"], [user, noto])
    assert [atlas.fonts[i] for i in atlas.sources] == [LABEL_SOURCE, LABEL_SOURCE, user.name, noto.name]
    assert atlas.bitmaps.any(1).tolist() == [False, True, True, True]
    np.testing.assert_array_equal(atlas.pictures(1), Rasterizer(noto).draw("[UNK]"))
    with pytest.raises(UserError, match=r"no font draws 𠮷 \(U\+20BB7\) \(Made Up Regular 1.500 has it without ink\)"):
        GlyphAtlas.build("天𠮷", [user, noto])
    assert GlyphAtlas.build("天𠮷\U00030000文", [user, noto], leave_out=True).tokens == ("天", "文")


def test_what_looks_alike_is_told(noto):
    atlas = GlyphAtlas.build(["[PAD]", *"㖈人Aα⼈䎛Α"], [noto])
    same = {tuple(sorted(group)) for group in atlas.look_alikes()}
    assert same == {("㖈", "䎛"), ("⼈", "人"), ("A", "Α")}
    assert atlas.look_alikes()[0] == ("㖈", "䎛")
