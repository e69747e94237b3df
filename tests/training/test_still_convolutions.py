"""HanGlyph's convolutions stand still in the first steps, whose features are computed once."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from glyphcrm.errors import UserError
from glyphcrm.modeling import GlyphCRMForMaskedLM
from glyphcrm.modeling.glyph_vectors import hold_convolutions, ranks, still
from glyphcrm.modeling.hanglyph import HanGlyph
from glyphcrm.training import loop
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
    for held in (False, True):
        if held:
            hold_convolutions(hanglyph, bitmaps)
        model.zero_grad()
        vectors = hanglyph(rows, bitmaps)
        torch.stack(vectors).square().sum().backward()
        projections = hanglyph.vector, hanglyph.skip1, hanglyph.skip2
        results.append([*vectors, *(layer.weight.grad for layer in projections)])
        assert {parameter.grad is None for parameter in hanglyph.convolutions()} == {held}
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected)
    # They are of these pictures alone: of others, as drawn by hand or by another font, the same rows are read anew.
    others = bitmaps.flip(0)
    torch.testing.assert_close(hanglyph(rows, others).vector, hanglyph(ROWS - 1 - rows, bitmaps).vector)


def test_features_are_made_piece_by_piece_and_shared_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two pieces are in memory at once beside the whole; three processes make a third each, with a bar in one."""
    model = new_model()
    hanglyph, bitmaps = model.glyphcrm.hanglyph, model.glyphcrm.glyph_table.bitmaps
    pieces: list[weakref.ref[Tensor]] = []
    features, read = HanGlyph.features, list[int]()

    def watched(self: HanGlyph, rows: Tensor, bitmaps: Tensor) -> tuple[Tensor, Tensor]:
        assert sum(piece() is not None for piece in pieces) <= 2  # the last one, until the next is made
        made = features(self, rows, bitmaps)
        pieces.extend(map(weakref.ref, made))
        read.append(len(rows))
        return made

    bars: list[tuple[int, int]] = []

    class Bar(still.tqdm):  # type: ignore[misc]
        def __init__(self, total: int, disable: bool | None, **settings: Any) -> None:
            self.shown, self.done = disable is None, 0
            super().__init__(total=total, disable=True)

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)

        def __exit__(self, *ended: object) -> None:
            if self.shown:
                bars.append((self.done, self.total))

    monkeypatch.setattr(HanGlyph, "features", watched)
    monkeypatch.setattr(still, "PIECE", 5)
    monkeypatch.setattr(still, "tqdm", Bar)
    hold_convolutions(hanglyph, bitmaps)
    assert hanglyph.still is not None and read == [5] * 8 and not bars
    whole = hanglyph.still
    monkeypatch.setattr(ranks, "world", lambda: 3)
    shares: list[Tensor] = []
    monkeypatch.setattr(ranks, "exchange", lambda rows: shares.append(ranks.own_share(rows)))
    read.clear()
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        hold_convolutions(hanglyph, bitmaps, progress=rank == 0)
    assert read == [5, 5, 4] * 3 and bars == [(14, 14)]
    for block, expected in enumerate((whole.block1, whole.block2)):
        torch.testing.assert_close(torch.cat(shares[block::2])[:ROWS], expected)


def test_a_gpu_without_room_for_features_is_told_what_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they are made no smaller micro-batch helps; afterwards it may."""

    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loop.Step, "accumulate", full)
    with pytest.raises(UserError, match=r"at step 0; .*smaller --micro-batch-size, or let HanGlyph's"):
        run(tmp_path / "steps", still_plan())
    monkeypatch.setattr(loop, "hold_convolutions", full)
    with pytest.raises(UserError, match=rf"no room for .* features of {ROWS} pictures; let the convolutions move"):
        run(tmp_path / "features", still_plan())


def test_making_features_does_not_count_as_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands but for them; else a plan by the speed of the first steps would be far too short."""
    clock = [0.0]
    hold = loop.hold_convolutions

    def slowly(*arguments: Any, **settings: Any) -> None:
        clock[0] += 1000
        hold(*arguments, **settings)

    monkeypatch.setattr(loop, "hold_convolutions", slowly)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    (tmp_path / "run").mkdir()
    objective, display = Characters(PaddedMicroBatches(collate, 2)), Display("", shown=False)
    progress = Training(new_model(), objective, still_plan(), CPU, tmp_path / "run", display, []).run(None)
    assert clock == [1000.0] and progress.seconds == 0.0


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
