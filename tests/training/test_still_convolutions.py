"""HanGlyph's convolutions stand still in the first steps, whose features are computed once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glyphcrm.modeling import GlyphCRMForMaskedLM
from glyphcrm.modeling.hanglyph import HanGlyph
from glyphcrm.training.loop import Training
from glyphcrm.training.progress import Display
from glyphcrm.training.step_loader import PaddedMicroBatches
from tests.training.test_loop import CPU, ROWS, Characters, collate, new_model, plan, run, same

STILL = 5
still_plan = partial(plan, still_steps=STILL)


def convolutions(model: GlyphCRMForMaskedLM) -> list[Tensor]:
    return [parameter.detach() for parameter in model.glyphcrm.hanglyph.convolutions()]


def test_held_features_are_those_of_the_convolutions() -> None:
    model = new_model()
    hanglyph, bitmaps = model.glyphcrm.hanglyph, model.glyphcrm.glyph_table.bitmaps
    rows = torch.tensor([7, 3, 7, 39])
    results = []
    for held in (None, bitmaps):
        hanglyph.hold_convolutions(held)
        model.zero_grad()
        vectors = hanglyph(rows, bitmaps)
        torch.stack(vectors).square().sum().backward()
        projections = hanglyph.vector, hanglyph.skip1, hanglyph.skip2
        results.append([*vectors, *(layer.weight.grad for layer in projections)])
        assert {parameter.grad is None for parameter in hanglyph.convolutions()} == {held is not None}
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected)
    # They are of these pictures alone: of others, as drawn by hand or by another font, the same rows are read anew.
    others = bitmaps.flip(0)
    torch.testing.assert_close(hanglyph(rows, others).vector, hanglyph(ROWS - 1 - rows, bitmaps).vector)


def test_the_first_steps_are_those_of_a_model_whose_convolutions_are_frozen(tmp_path: Path) -> None:
    still, _ = run(tmp_path / "still", still_plan(end=STILL), dropout=0.0)
    frozen = new_model()
    for parameter in frozen.glyphcrm.hanglyph.convolutions():
        parameter.requires_grad_(False)
    (tmp_path / "frozen").mkdir()
    objective = Characters(PaddedMicroBatches(collate, 2))
    display = Display("", shown=False)
    Training(frozen, objective, plan(end=STILL), CPU, tmp_path / "frozen", display, []).run(None)
    for (name, mine), other in zip(still.named_parameters(), frozen.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=name)
    begun = new_model()
    assert all(map(torch.equal, convolutions(still), convolutions(begun)))
    assert not torch.equal(still.glyphcrm.hanglyph.vector.weight, begun.glyphcrm.hanglyph.vector.weight)


def test_a_run_that_is_stopped_before_or_after_they_move_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, bool]] = []
    features = HanGlyph.features

    def counted(self: HanGlyph, rows: Tensor, bitmaps: Tensor) -> tuple[Tensor, Tensor]:
        read.append((len(rows), torch.is_grad_enabled()))
        return features(self, rows, bitmaps)

    monkeypatch.setattr(HanGlyph, "features", counted)
    whole, history = run(tmp_path / "whole", still_plan(validations={}))
    # For the basis of the projections, and for the first steps; then as ever, step by step.
    assert [gradients for _, gradients in read] == [False] * 2 + [True] * (8 - STILL) and read[1][0] == ROWS
    for end in (3, STILL, STILL + 1, 8):
        continued, told = run(tmp_path / "parts", still_plan(end=end, validations={}))
        moved = [
            not torch.equal(*pair) for pair in zip(convolutions(continued), convolutions(new_model()), strict=True)
        ]
        assert set(moved) == {end > STILL}
        assert continued.glyphcrm.hanglyph.still is None  # nor in a model that goes on elsewhere
    assert same(continued, whole) and told == history
