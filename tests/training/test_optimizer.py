"""HanGlyph and the rest of a model: clipped apart, each at its own rate; schedule and decay as in transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_linear_schedule_with_warmup

from glyphcrm.configuration import preset
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import BertBaseline
from glyphcrm.pretraining.ablations import free_glyphs
from glyphcrm.training.optimizer import (
    OptimizerSettings,
    clip_by_part,
    hanglyph_parameters,
    make_optimizer,
    parts_of,
    set_rates,
    share_of_peak,
)

CONFIG = preset("nano", vocab_size=40, num_glyphs=40)


def glyphcrm() -> GlyphCRMForPreTraining:
    model = GlyphCRMForPreTraining(CONFIG)
    model.glyphcrm.glyph_table.bitmaps = torch.randint(0, 256, (40, 288), dtype=torch.uint8)
    return model


def with_free_glyphs() -> GlyphCRMForPreTraining:
    model = glyphcrm()
    free_glyphs(model)
    return model


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
def test_hanglyph_and_the_rest_are_clipped_apart(of_glyphs: float, of_others: float) -> None:
    model = glyphcrm()
    glyphs = hanglyph_parameters(model)
    others = [p for name, p in model.named_parameters() if ".hanglyph." not in name]
    assert len(glyphs) + len(others) == len(list(model.parameters()))
    fill(glyphs, of_glyphs)
    fill(others, of_others)
    total = clip_by_part(parts_of(model))
    assert float(total) == pytest.approx((of_glyphs**2 + of_others**2) ** 0.5, rel=1e-5)
    assert norm(glyphs) == pytest.approx(min(of_glyphs, 1), rel=1e-4)
    assert norm(others) == pytest.approx(min(of_others, 1), rel=1e-4)


def test_a_bert_is_clipped_as_a_whole() -> None:
    bert = BertBaseline.for_config(CONFIG)
    fill(list(bert.parameters()), 7.0)
    assert float(clip_by_part(parts_of(bert))) == pytest.approx(7, rel=1e-5)
    assert norm(bert.parameters()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("projection_rate", [None, 0.03])
def test_each_part_has_its_rate(projection_rate: float | None) -> None:
    model = glyphcrm()
    settings = OptimizerSettings(0.1, 0, 0.5, glyph_learning_rate=0.01, projection_learning_rate=projection_rate)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = []
    optimizer = make_optimizer(model, settings)
    set_rates(optimizer, settings, step=1, steps=2)  # half of the peak
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                assert (group["lr"], group["weight_decay"]) == (0.5 * projection_rate, 0)  # type: ignore[operator]
                continue
            seen.append(names[parameter])
            assert group["lr"] == 0.5 * (0.01 if ".hanglyph." in names[parameter] else 0.1)
    through_steps = [f"glyphcrm.hanglyph.{name}.weight" for name in ("vector", "skip1", "skip2")]
    assert sorted(seen + through_steps * (projection_rate is not None)) == sorted(names.values())


@pytest.mark.parametrize(
    ("make", "held"),
    [
        (glyphcrm, "glyphcrm.hanglyph."),
        (with_free_glyphs, "glyphcrm.hanglyph."),
        (lambda: BertBaseline.for_config(CONFIG), "bert.embeddings.word_embeddings."),
    ],
)
def test_what_makes_vectors_is_held_back_at_first(make: Callable[[], PreTrainedModel], held: str) -> None:
    model = make()
    settings = OptimizerSettings(0.1, 4, glyph_learning_rate=0.05, hold_steps=10, hold_share=0.2)
    optimizer = make_optimizer(model, settings)
    parameters = [(p, name.startswith(held)) for name, p in model.named_parameters()]
    rates = {}
    for step in range(20):
        set_rates(optimizer, settings, step, 20)
        rate = {p: group["lr"] / group["peak"] for group in optimizer.param_groups for p in group["params"]}
        plain = share_of_peak(step, 4, 20)
        assert all(rate[p] == pytest.approx(plain) for p, is_held in parameters if not is_held)
        (rates[step],) = {rate[p] for p, is_held in parameters if is_held}
        rates[step] /= plain or 1.0
    assert list(rates.values()) == pytest.approx([0, *[0.2] * 9, 0.4, 0.6, 0.8, *[1] * 7])


def test_convolutions_rise_from_0_after_standing_still() -> None:
    model = glyphcrm()
    settings = OptimizerSettings(0.1, 2, glyph_learning_rate=0.05, hold_steps=1, hold_share=0.5, still_steps=4)
    optimizer = make_optimizer(model, settings)
    convolutions, of_hanglyph = set(model.glyphcrm.hanglyph.convolutions()), set(hanglyph_parameters(model))
    rates: dict[str, list[float]] = {"convolutions": [], "projections": [], "rest": []}
    for step in range(2, 8):
        set_rates(optimizer, settings, step, 8)
        found: dict[str, set[float]] = {kind: set() for kind in rates}
        for group in optimizer.param_groups:
            for p in group["params"]:
                kind = "convolutions" if p in convolutions else "projections" if p in of_hanglyph else "rest"
                found[kind].add(round(group["lr"] / group["peak"] / share_of_peak(step, 2, 8), 9))
        for kind, of_kind in found.items():
            (rate,) = of_kind
            rates[kind].append(rate)
    assert rates == {"convolutions": [0, 0, 0.5, 1, 1, 1], "projections": [1] * 6, "rest": [1] * 6}
    assert len(convolutions) == 16 and len(of_hanglyph) == 22


def test_held_wholly_still_nothing_of_it_moves() -> None:
    model = glyphcrm()
    settings = OptimizerSettings(0.1, 0, glyph_learning_rate=0.05, projection_learning_rate=0.03, hold_steps=2)
    optimizer = make_optimizer(model, settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        set_rates(optimizer, settings, step, 9)
        optimizer.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {name for name in before if step == 2 or ".hanglyph." not in name}


def test_without_a_rate_of_its_own_hanglyph_learns_at_that_of_the_rest() -> None:
    assert {group["lr"] for group in make_optimizer(glyphcrm(), OptimizerSettings(0.1)).param_groups} == {0.1}


@pytest.mark.parametrize("make", [glyphcrm, with_free_glyphs, lambda: BertBaseline.for_config(CONFIG)])
def test_weights_decay_where_they_do_in_transformers_trainer(make: object, tmp_path: Path) -> None:
    model: PreTrainedModel = make()  # type: ignore[operator]
    trainer = Trainer(model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, OptimizerSettings(0.1, weight_decay=0.5)).param_groups
    decayed = {names[parameter] for group in groups if group["weight_decay"] for parameter in group["params"]}
    # A tied weight has two names there.
    assert decayed == {names[model.get_parameter(name)] for name in trainer.get_decay_parameter_names(model)}


@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (3, 10), (10, 10), (1, 1)])
def test_the_schedule_is_transformers_linear_one(warmup: int, steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    for step in range(steps + 1):
        assert share_of_peak(step, warmup, steps) == schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()


def test_fine_tuning_trains_hanglyph_more_slowly_unless_told_otherwise() -> None:
    options = FinetuneOptions(task="demo_sentiment", model="somewhere", learning_rate=1e-3)
    assert options.hanglyph_rates() == pytest.approx((1e-5, 3e-5))
    options = FinetuneOptions(task="demo_sentiment", model="somewhere", learning_rate=1e-3, one_rate=True)
    assert options.hanglyph_rates() == (1e-3, None)
