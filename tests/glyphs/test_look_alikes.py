"""The nearest pictures of a character, by all of its pixels."""

from __future__ import annotations

import numpy as np
import pytest

from glyphcrm.glyphs import look_alikes
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.look_alikes import look_alikes_from_atlas


@pytest.mark.parametrize("block", [1, 2500, 1 << 22])  # rows compared at a time: 1, 1, all
def test_nearest_pictures(atlas: GlyphAtlas, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(look_alikes, "DISTANCE_BLOCK", block)
    characters = [token for token in atlas.tokens if len(token) == 1]
    found = look_alikes_from_atlas(atlas, [*characters, "無", characters[0]], 4)
    assert list(found) == characters
    pictures = atlas.pictures([atlas.rows[char] for char in characters]).reshape(len(characters), -1).astype(int)
    for row, char in enumerate(characters):
        pixels = np.abs(pictures - pictures[row]).sum(1)
        expected = sorted((other for other in range(len(characters)) if other != row), key=lambda i: (pixels[i], i))
        assert found[char] == "".join(characters[i] for i in expected[:4])


def test_too_many_look_alikes_are_refused(atlas: GlyphAtlas) -> None:
    assert look_alikes_from_atlas(atlas, "天地玄無", 2).keys() == set("天地玄")
    for count in (0, 3):
        with pytest.raises(ValueError, match="3 characters have 1 to 2"):
            look_alikes_from_atlas(atlas, "天地玄無", count)
