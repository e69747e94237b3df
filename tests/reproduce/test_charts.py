"""The charts of RESULTS.md name tasks of one's own as they are named."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from glyphcrm.reproduce.charts import draw_robustness, draw_scores


@pytest.mark.parametrize("title", ["酒店评论", "价格 $50_$100"])
def test_titles_are_drawn_as_they_are(title: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spread = {"mean": 0.5, "deviation": 0.1}
    curve = {"0.0": 0.9, "0.5": 0.6}
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")  # matplotlib's word for a glyph that its font lacks
        draw_scores({title: {"glyphcrm": spread, "bert": spread}}, tmp_path / "scores.png")
        draw_robustness({title: {"glyphcrm": curve, "bert": curve}}, {title: 100}, tmp_path / "curves.png")
    assert not caplog.records  # that of a formula
