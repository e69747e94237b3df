"""What training in several fonts brings, at the size of a nano."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.reproduce import stages
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.other_fonts import compare_fonts
from glyphcrm.reproduce.plan import Plan
from glyphcrm.reproduce.side_by_side import Workers
from glyphcrm.tasks import find_task
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import TEXT, VOCABULARY_SIZE
from tests.glyphs.font_files import font_file


def test_both_trainings_are_told_in_each_font_and_done_once(
    atlas: GlyphAtlas, tokenizer: GlyphCRMTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are those of the runs' own files; a second call, from another directory, trains nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "VALIDATION_SAMPLES", 8)
    torch.manual_seed(0)
    model = tmp_path / "model"
    fresh = GlyphCRMForPreTraining.from_atlas(preset("nano", vocab_size=VOCABULARY_SIZE), atlas)
    save_checkpoint(fresh, tokenizer, model)
    text, task = tmp_path / "text.txt", tmp_path / "reviews.toml"
    text.write_text("\n\n".join([f"{TEXT[i : i + 6]}。{TEXT[i + 6 : i + 12]}。" for i in range(40)]), encoding="utf-8")
    rows = [f"{'ab'[i % 2]}\t{TEXT[i % 40 : i % 40 + 8]}" for i in range(80)]
    (tmp_path / "reviews.tsv").write_text("\n".join(["label\ttext", *rows]) + "\n", encoding="utf-8")
    task.write_text('kind = "sentence"\ntrain = "reviews.tsv"\ntext = "text"\nlabel = "label"\nepochs = 1\n')
    fonts = []
    for name, right, up in (("Left", 9, 0), ("Low", 0, 9)):
        boxes = {char: (50 + right * i, up * i, 900, 800) for i, char in enumerate(TEXT)}
        fonts.append(font_file(tmp_path / f"{name}.ttf", boxes, family=name).name)
    words = "--preset nano --text text.txt --tasks reviews.toml --output-dir out --seeds 1 --max-length 32"
    options = ReproduceOptions.parse([*words.split(), "--batch-size", "4"])
    plan = Plan(4, 1, 4, 4, 32, 2, {})
    workers = Workers(options.output_dir, 2)
    arguments = options, plan, find_task("reviews.toml"), Path("model"), fonts[:1], fonts[1], workers
    found = compare_fonts(*arguments)
    assert found is not None, workers.failures
    for name in ("one font", "several fonts"):
        run = tmp_path / "out" / "other_fonts" / "pretraining" / name
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses, scores = found["mlm_loss"][name], found["score"][name]
        assert losses["own"] == pytest.approx(entries[-1]["eval_mlm_loss"], rel=1e-5)
        assert losses.keys() == scores.keys() == {"own", "Low Regular 1.500"} and len(set(losses.values())) == 2
        summary = json.loads((run.parents[1] / "finetuning" / name / "summary.json").read_text())
        expected = {"own": summary["test"], **summary["test_fonts"]}
        assert scores == {font: expected[font]["accuracy"] for font in scores}
    assert found["mlm_loss"]["one font"] != found["mlm_loss"]["several fonts"]
    done = dict(workers.seconds)
    monkeypatch.chdir("/")
    elsewhere = replace(options, text=[str(text)], tasks=[str(task)], output_dir=tmp_path / "out")
    left, low = (str(tmp_path / font) for font in fonts)
    absolute = elsewhere, plan, find_task(str(task)), model, [left], low, workers
    assert compare_fonts(*absolute) == found and workers.seconds == done
