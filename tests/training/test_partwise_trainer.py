"""HanGlyph and the rest of a model: clipped apart, each at its own rate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from glyphcrm.training.partwise_trainer import PartwiseTrainer, hanglyph_parameters
from transformers import TrainingArguments

from glyphcrm.configuration import preset
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import BertBaseline


def norm(parameters: Iterable[torch.nn.Parameter]) -> float:
    """The norm of all gradients together."""
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())


def fill(parameters: list[torch.nn.Parameter], length: float) -> None:
    """Set random gradients of this norm."""
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    scale = length / norm(parameters)
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad *= scale


@pytest.mark.parametrize(("of_glyphs", "of_others"), [(100.0, 0.5), (0.5, 100.0), (30.0, 40.0), (0.3, 0.4)])
def test_hanglyph_and_the_rest_are_clipped_apart(tmp_path: Path, of_glyphs: float, of_others: float) -> None:
    model = GlyphCRMForPreTraining(preset("nano", vocab_size=40, num_glyphs=40))
    glyphs = hanglyph_parameters(model)
    others = [p for name, p in model.named_parameters() if ".hanglyph." not in name]
    assert len(glyphs) + len(others) == len(list(model.parameters()))
    fill(glyphs, of_glyphs)
    fill(others, of_others)
    trainer = PartwiseTrainer(model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_grad_norm=1.0))
    total = trainer._clip_grad_norm(model)
    assert float(total) == pytest.approx((of_glyphs**2 + of_others**2) ** 0.5, rel=1e-5)
    assert norm(glyphs) == pytest.approx(min(of_glyphs, 1), rel=1e-4)
    assert norm(others) == pytest.approx(min(of_others, 1), rel=1e-4)


def test_a_bert_is_clipped_as_transformers_does(tmp_path: Path) -> None:
    bert = BertBaseline.for_config(preset("nano", vocab_size=40, num_glyphs=40))
    fill(list(bert.parameters()), 7.0)
    trainer = PartwiseTrainer(bert, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_grad_norm=1.0))
    assert float(trainer._clip_grad_norm(bert)) == pytest.approx(7, rel=1e-5)
    assert norm(bert.parameters()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("projection_rate", [None, 0.03])
def test_each_part_has_its_rate(tmp_path: Path, projection_rate: float | None) -> None:
    model = GlyphCRMForPreTraining(preset("nano", vocab_size=40, num_glyphs=40))
    model.glyphcrm.glyph_table.bitmaps = torch.randint(0, 256, (40, 288), dtype=torch.uint8)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=0.1, weight_decay=0.5)
    trainer = PartwiseTrainer(model, arguments, glyph_learning_rate=0.01, projection_learning_rate=projection_rate)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = []
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                assert (group["lr"], group["weight_decay"]) == (projection_rate, 0)
                continue
            seen.append(names[parameter])
            assert group["lr"] == (0.01 if ".hanglyph." in names[parameter] else 0.1)
            has_decay = parameter.dim() > 1  # neither a bias nor of a norm
            assert group["weight_decay"] == (0.5 if has_decay else 0)
    through_steps = [f"glyphcrm.hanglyph.{name}.weight" for name in ("vector", "skip1", "skip2")]
    assert sorted(seen + through_steps * (projection_rate is not None)) == sorted(names.values())


def test_without_a_rate_of_its_own_hanglyph_learns_at_that_of_the_rest(tmp_path: Path) -> None:
    model = GlyphCRMForPreTraining(preset("nano", vocab_size=40, num_glyphs=40))
    trainer = PartwiseTrainer(model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=0.1))
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {0.1}


def test_fine_tuning_trains_hanglyph_more_slowly_unless_told_otherwise() -> None:
    options = FinetuneOptions(task="demo_sentiment", model="somewhere", learning_rate=1e-3)
    assert options.hanglyph_rates() == pytest.approx({"glyph_learning_rate": 1e-5, "projection_learning_rate": 3e-5})
    options = FinetuneOptions(task="demo_sentiment", model="somewhere", learning_rate=1e-3, one_rate=True)
    assert options.hanglyph_rates() == {"glyph_learning_rate": 1e-3, "projection_learning_rate": None}
