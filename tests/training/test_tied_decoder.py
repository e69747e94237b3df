"""A decoder that is tied beside the optimiser's steps, against one that is a sum in the forward."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glyphcrm.errors import UserError
from glyphcrm.modeling import GlyphCRMForMaskedLM
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.training.loop import Step
from glyphcrm.training.optimizer import OptimizerSettings, make_optimizer, set_rates
from glyphcrm.training.step_loader import PaddedMicroBatches
from glyphcrm.training.tied_decoder import TiedDecoder
from tests.training.test_loop import CPU, ROWS, Characters, Samples, collate, new_model, plan, run, same

tied_plan = partial(plan, still_steps=5, tied_decoder=True)


def of_two_fonts() -> GlyphCRMForMaskedLM:
    """A model whose decoder has fewer rows than the atlas, and that reads half of the characters in another font."""
    model = new_model()
    table = model.glyphcrm.glyph_table
    table.read_in_fonts(torch.cat([table.bitmaps, torch.randint(0, 256, table.bitmaps.shape, dtype=torch.uint8)]))
    model.mlm.decoder.weight = torch.nn.Parameter(model.mlm.decoder.weight[:-3].detach())
    model.mlm.decoder.bias = torch.nn.Parameter(model.mlm.decoder.bias[:-3].detach())
    return model


def steps_of(model: GlyphCRMForMaskedLM, settings: OptimizerSettings, tied: TiedDecoder | None) -> list[float]:
    """Take three steps with still convolutions; return the norms of their gradients."""
    optimizer = make_optimizer(model, settings)
    step = Step(model, Characters(PaddedMicroBatches(collate, 2)), optimizer, CPU, tied=tied)
    step.hold_convolutions(True)
    norms = []
    for number in range(3):
        set_rates(optimizer, settings, number, 10)
        batches = [collate([Samples()[4 * number + i] for i in pair]) for pair in ((0, 1), (2, 3))]
        for batch in batches:
            batch["labels"][batch["labels"] >= ROWS - 3] = -100
        norms.append(float(step(batches)[1]))
    return norms


@pytest.mark.parametrize("scaling", [0.0, 0.5])
def test_rows_and_vectors_learn_as_parts_of_a_sum(scaling: float) -> None:
    """The sum is written out in the reference's forward, and PyTorch differentiates it."""
    settings = OptimizerSettings(
        1e-2,
        weight_decay=0.0,  # which would pull at the whole row, and at its rest alone
        glyph_learning_rate=1e-3,
        projection_learning_rate=1e-3,
        still_steps=10,
        character_scaling=scaling,
    )
    ours, theirs, untied = of_two_fonts(), of_two_fonts(), of_two_fonts()
    hanglyph, decoder = theirs.glyphcrm.hanglyph, theirs.mlm.decoder
    bitmaps = theirs.glyphcrm.glyph_table.bitmaps
    with torch.no_grad():
        features = hanglyph.features(torch.arange(ROWS - 3), bitmaps)[1]

    def vectors() -> Tensor:
        return torch.tanh(hanglyph.vector(features))

    before = vectors().detach()
    with torch.no_grad():
        decoder.weight -= before
    decoder.forward = lambda x: F.linear(x, decoder.weight + vectors(), decoder.bias)  # type: ignore[method-assign]
    torch.manual_seed(1)
    norms = steps_of(ours, settings, TiedDecoder.of(ours, CPU.autocast))
    torch.manual_seed(1)
    assert norms == pytest.approx(steps_of(theirs, settings, None), rel=1e-4)
    torch.manual_seed(1)
    assert norms[0] != pytest.approx(steps_of(untied, settings, None)[0], rel=1e-3)
    assert (vectors() - before).abs().max() > 1e-3
    with torch.no_grad():
        decoder.weight += vectors()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if "key.bias" not in name:  # whose gradient is rounding, and Adam's step its sign
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5, msg=name)


def test_a_run_goes_on_bit_for_bit_and_is_tied_no_longer_when_convolutions_move(tmp_path: Path) -> None:
    whole, history = run(tmp_path / "whole", tied_plan())
    for end in (3, 5, 6, 8):
        continued, told = run(tmp_path / "parts", tied_plan(end=end))
    assert same(continued, whole) and told == history
    free, _ = run(tmp_path / "free", plan(still_steps=5))
    assert not same(free, whole)
    moving = [run(tmp_path / f"moving-{tied}", plan(tied_decoder=tied))[0] for tied in (False, True)]
    assert same(*moving)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--arch bert --tied-decoder yes", "--tied-decoder is for models that read pictures"),
        ("--ablation free-glyphs --tied-decoder yes", "--tied-decoder is for models that read pictures"),
        (
            "--still-steps 0 --tied-decoder yes",
            "--tied-decoder ties while convolutions stand still; give --still-steps",
        ),
        ("--preset small --tied-decoder yes", "give --still-steps"),
    ],
)
def test_what_cannot_be_tied_is_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainOptions.parse(words.split())


def test_the_preset_ties_where_it_can() -> None:
    for words, tied in (
        ("", True),
        ("--still-steps 5", True),
        ("--still-steps 0", False),
        ("--tied-decoder no", False),
    ):
        assert PretrainOptions.parse(words.split()).recipe.tied_decoder is tied, words
    for words in ("--arch bert", "--ablation free-glyphs", "--preset small --still-steps 5"):
        assert not PretrainOptions.parse(words.split()).recipe.tied_decoder, words
