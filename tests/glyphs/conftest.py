import pytest

from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.font_file import Font
from glyphcrm.glyphs.fonts import default_font


@pytest.fixture(scope="session")
def noto() -> Font:
    return default_font()


@pytest.fixture(scope="session")
def small_atlas(noto: Font) -> GlyphAtlas:
    return GlyphAtlas.build(["[PAD]", "[UNK]", *"中文，。A"], [noto])
