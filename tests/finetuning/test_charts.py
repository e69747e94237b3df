"""Charts: every name is drawn, and nothing is cut off."""

from __future__ import annotations

import resource
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glyphcrm.errors import UserError
from glyphcrm.finetuning import charts
from glyphcrm.finetuning.charts import draw_confusion_matrix, draw_entity_scores


def margin(path: Path) -> int:
    """Width in pixels of the blank frame around what is drawn."""
    with Image.open(path) as image:
        ink = np.argwhere(np.asarray(image.convert("L")) < 250)
        height, width = image.height, image.width
    return int(min(ink.min(), height - 1 - ink[:, 0].max(), width - 1 - ink[:, 1].max()))


def test_chinese_names_are_drawn_and_nothing_is_cut_off(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's word for a glyph that its font lacks
        for count in (2, 15, 60):
            labels = [f"类{chr(0x4E00 + i)}别" for i in range(count)]
            gold = labels * 20
            draw_confusion_matrix(gold, labels * 19 + labels[::-1], labels, "名字\ntest", tmp_path / f"{count}.png")
            assert margin(tmp_path / f"{count}.png") > 0
        scores = {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 12.0}
        draw_entity_scores({"地点": scores, "ORG": scores}, "名字\ntest", tmp_path / "entities.png")
        assert margin(tmp_path / "entities.png") > 0


@pytest.mark.parametrize("name", ["$50_$100", "$$", "$0-$50", "(^$_$^)", "$5元_优惠$", "\\$"])
def test_a_dollar_is_drawn_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In labels, types of entities and titles; as a formula it is an error, or another name."""
    figures: list[Any] = []
    save = charts.save_figure
    monkeypatch.setattr(charts, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    scores = {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 12.0}
    draw_confusion_matrix([name, "a"], ["a", name], [name, "a"], name, tmp_path / "matrix.png")
    draw_entity_scores({name: scores}, name, tmp_path / "entities.png")
    for figure in figures:
        (axes,) = figure.axes
        for text in (axes.title, axes.get_xticklabels()[0]):
            drawn = text.get_window_extent().width
            text.set_text(text.get_text().replace("$", "€").replace("\\", "/"))  # of like width, and no formula
            assert drawn == pytest.approx(text.get_window_extent().width, rel=0.1)


def test_a_full_disk_leaves_the_chart_that_was_there(tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    chart.write_bytes(b"of another run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"chart\.png: cannot be written"):
            draw_confusion_matrix(["a", "b"], ["a", "b"], ["a", "b"], "title", chart)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert chart.read_bytes() == b"of another run" and list(tmp_path.iterdir()) == [chart]
