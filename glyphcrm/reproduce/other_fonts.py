"""Fonts that a model never saw: what training in several fonts brings, against as much training in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glyphcrm.checkpoint import load_atlas, load_checkpoint
from glyphcrm.finetuning.run import SUMMARY_FILE
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.pretraining.objective import PretrainingObjective
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.pretraining.run import prepare
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import Plan
from glyphcrm.reproduce.side_by_side import Workers
from glyphcrm.reproduce.stages import fine_tuning, pretraining
from glyphcrm.tasks import Task
from glyphcrm.training.machine import Machine
from glyphcrm.training.run_directory import MODEL_DIRECTORY, read_json

DIRECTORY = "other_fonts"


def compare_fonts(
    options: ReproduceOptions,
    plan: Plan,
    task: Task,
    model: Path,
    train_fonts: Sequence[str],
    test_font: str,
    workers: Workers,
) -> dict[str, Any] | None:
    """Train a pre-trained GlyphCRM further, in one font and in several; fine-tune each so, and test in an unseen font.

    Both take `plan.held_out_steps` steps. Return for "one font" and "several fonts" the validation MLM loss, and the
    spread of the task's metric over the seeds, by the font that is read: "own", then `test_font` by its name. Return
    None if a run failed, which `workers` know of.
    """
    directory = options.output_dir / DIRECTORY
    runs = {name: directory / "pretraining" / name for name in ("one font", "several fonts")}
    tuned = {name: directory / "finetuning" / name for name in runs}
    further = {"one font": (), "several fonts": ("--train-font", *train_fonts)}
    start, steps, text = ("--init", str(model)), plan.held_out_steps, f"{DIRECTORY}/text"
    trainings = {
        name: pretraining(options, run, "glyphcrm", steps, (*start, *further[name]), text) for name, run in runs.items()
    }
    if not workers.run(list(trainings.values())) or not workers.run(
        [
            fine_tuning(
                options,
                plan,
                task,
                run / MODEL_DIRECTORY,
                tuned[name],
                (*further[name], "--test-font", test_font),
            )
            for name, run in runs.items()
        ]
    ):
        return None
    own, font = load_atlas(model), open_font(test_font)
    fonts = {"own": own, font.name: own.redrawn(font, progress=True)}
    result: dict[str, Any] = {"task": task.name, "metric": task.metric, "mlm_loss": {}, "score": {}}
    for name, training in trainings.items():
        summary = read_json(tuned[name] / SUMMARY_FILE)
        scores = {"own": summary["test"], **summary["test_fonts"]}
        result["score"][name] = {font: scores[font][task.metric] for font in fonts}
        # As they are asked for now: a run keeps paths as they were given, maybe in another directory.
        result["mlm_loss"][name] = mlm_losses(PretrainOptions.parse(training.arguments), fonts)
    return result


def mlm_losses(options: PretrainOptions, fonts: Mapping[str, GlyphAtlas]) -> dict[str, float]:
    """Return the validation MLM loss of a finished pre-training run when its model reads each of these atlases."""
    options = replace(options, train_font=[])
    with Machine.joined("pretrain.py", options.bf16) as machine:
        corpus, _ = prepare(options, first=False)
        model, _ = load_checkpoint(options.run_dir / MODEL_DIRECTORY, GlyphCRMForPreTraining)
        model.to(machine.device).eval()  # type: ignore[arg-type]
        micro = options.recipe.micro_batch_size
        objective = PretrainingObjective(corpus.train, corpus.validation, micro, machine, 1)
        losses = {}
        for name, atlas in fonts.items():
            model.set_atlas(atlas)
            losses[name] = objective.validate(model)["eval_mlm_loss"]
    return losses
