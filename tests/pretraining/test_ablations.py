"""Each ablation changes the part that it names, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glyphcrm.configuration import preset
from glyphcrm.errors import UserError
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import BertBaseline
from glyphcrm.pretraining.ablations import free_glyphs
from glyphcrm.pretraining.options import OF_PICTURES, PretrainOptions
from glyphcrm.training.recipe_file import write_recipe
from tests.pretraining.runs import command, main


@pytest.fixture
def model() -> GlyphCRMForPreTraining:
    torch.manual_seed(0)
    model = GlyphCRMForPreTraining(preset("nano", vocab_size=40, num_glyphs=40)).eval()
    base = model.glyphcrm
    base.glyph_table.bitmaps = torch.randint(0, 256, (40, 288), dtype=torch.uint8)
    base.hanglyph.whiten_projections(torch.arange(1, 40), base.glyph_table.bitmaps, 0.5)
    return model


def test_free_glyphs_start_where_hanglyph_is_and_learn_one_by_one(model: GlyphCRMForPreTraining) -> None:
    ids = torch.tensor([[2, 7, 9, 7, 3]])
    with torch.no_grad():
        before = model(ids).prediction_logits
    free_glyphs(model)
    after = model(ids).prediction_logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    after.sum().backward()
    for table in model.glyphcrm.hanglyph.parameters():
        assert table.grad is not None
        assert table.grad.any(1).nonzero().flatten().tolist() == [2, 3, 7, 9]


def test_an_untied_decoder_starts_from_the_same_frequencies() -> None:
    config = preset("nano", vocab_size=40, num_glyphs=40)
    tied, untied = (BertBaseline.for_config(config, tie_word_embeddings=tie) for tie in (True, False))
    for bert, is_tied in ((tied, True), (untied, False)):
        bert.start_from_frequencies(torch.arange(40))
        decoder = bert.cls.predictions.decoder
        assert bert.cls.predictions.bias is decoder.bias  # else it would have no gradient
        assert (decoder.weight is bert.bert.embeddings.word_embeddings.weight) is is_tied
        states = torch.zeros(1, config.hidden_size)
        torch.testing.assert_close(decoder(states).softmax(1)[0], (torch.arange(40) + 1.0) / sum(range(41)))


@pytest.mark.parametrize(
    ("ablation", "arch"), [("untied-decoder", "glyphcrm"), ("free-glyphs", "bert"), ("plain-projections", "bert")]
)
def test_an_ablation_of_the_other_model_is_refused(ablation: str, arch: str) -> None:
    with pytest.raises(UserError, match=f"--ablation {ablation} is of --arch"):
        PretrainOptions.parse(["--ablation", ablation, "--arch", arch])


def test_an_ablation_that_changes_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="changes nothing at --preset base"):
        PretrainOptions.parse(["--ablation", "plain-projections", "--preset", "base"])
    PretrainOptions.parse(["--ablation", "plain-projections", "--preset", "base", "--projection-learning-rate", "1e-5"])


def test_an_ablation_of_a_finished_model_is_refused() -> None:
    with pytest.raises(UserError, match="--ablation starts from scratch"):
        PretrainOptions.parse(["--ablation", "free-glyphs", "--init", "somewhere"])


@pytest.mark.parametrize("table", [["--arch", "bert"], ["--ablation", "free-glyphs"]])
def test_only_convolutions_can_stand_still(table: list[str]) -> None:
    """Where a recipe lets them, a model without any is trained as ever; asked for, it is refused."""
    ours, other = (PretrainOptions.parse(["--preset", "tiny", "--steps", "7", *more]).recipe for more in ([], table))
    assert (ours.steps_of_still_convolutions, ours.character_scaling) == (7, 0.5)
    assert (other.steps_of_still_convolutions, other.character_scaling) == (0, 0.0)
    # Repeated with a HanGlyph, the recipe is its preset's.
    assert not set(OF_PICTURES) & PretrainOptions.parse(["--preset", "tiny", *table]).settings().keys()
    with pytest.raises(UserError, match="--still-steps is for models that read pictures"):
        PretrainOptions.parse(["--preset", "tiny", "--still-steps", "5", *table])


def test_the_recipe_of_a_tied_decoder_is_one_of_convolutions_that_move(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    write_recipe(recipe, PretrainOptions.parse(["--preset", "tiny"]).settings())
    assert PretrainOptions.parse([str(recipe)]).recipe.tied_decoder
    assert not PretrainOptions.parse([str(recipe), "--still-steps", "0"]).recipe.tied_decoder


@pytest.mark.parametrize(
    ("table", "left"), [(["--arch", "bert"], []), (["--ablation", "free-glyphs"], ["--glyph-channels", "16"])]
)
def test_the_recipe_of_a_glyphcrm_is_one_of_the_models_beside_it(
    table: list[str], left: list[str], tmp_path: Path
) -> None:
    """What only pictures have is left out of it; asked for, or out of its range, it is refused as ever."""
    given = ["--glyph-channels", "16", "--still-steps", "5", "--character-scaling", "0.25", "--tied-decoder", "yes"]
    recipe = tmp_path / "recipe.yaml"
    write_recipe(recipe, PretrainOptions.parse(given).settings())
    words = [str(recipe), *table]
    new, other = PretrainOptions.parse([*table, *left]), PretrainOptions.parse(words)
    assert new.identity() == other.identity() and new.recipe == other.recipe
    with pytest.raises(UserError, match=r"^--character-scaling is for models that read pictures"):
        PretrainOptions.parse([*words, "--character-scaling", "0.25"])
    recipe.write_text(recipe.read_text().replace("character_scaling: 0.25", "character_scaling: 7"))
    with pytest.raises(UserError, match=r"recipe.yaml:\d+: --character-scaling is 7"):
        PretrainOptions.parse([str(recipe)])


def test_a_run_leaves_curves_and_no_model(text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(command(text_file, run, "--ablation", "free-glyphs")) == 0
    assert (run / "metrics.jsonl").read_text().count("eval_mlm_loss") == 3
    assert not (run / "model").exists()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert main(command(text_file, run, "--ablation", "free-glyphs")) == 0
    assert before and before == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
