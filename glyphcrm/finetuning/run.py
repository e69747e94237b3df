"""A whole run: one task, one model, several seeds.

run.json             what decides the results; a run with other settings is refused
recipe.yaml          the options that repeat it
seed-N/              of each seed: predictions.jsonl, tensorboard/; result.json, written last; until then checkpoint-N/
seed-N/model/        of the best seed, with --keep-model best
summary.json         mean and standard deviation over the seeds
chart.png            confusion matrix, or scores by type of entity, of the seed with the best dev score
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from glyphcrm.checkpoint import digests_of_model, load_atlas
from glyphcrm.config_file import read_config
from glyphcrm.config_values import POSITIONS
from glyphcrm.errors import UserError
from glyphcrm.finetuning.charts import draw_confusion_matrix, draw_entity_scores
from glyphcrm.finetuning.data import RunData, load_data
from glyphcrm.finetuning.metrics import check_installed
from glyphcrm.finetuning.models import GLYPHCRM
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.finetuning.results import PREDICTIONS_FILE, SeedResult, Summary, best, load_predictions, spreads
from glyphcrm.finetuning.seed_run import Fonts, SeedRun, length_of, seed_directory
from glyphcrm.glyphs.fonts import font_digests, open_font
from glyphcrm.tasks import Kind
from glyphcrm.training.machine import Machine
from glyphcrm.training.recipe_file import write_recipe
from glyphcrm.training.reports import check_reports
from glyphcrm.training.run_directory import MODEL_DIRECTORY, RECIPE_FILE, RUN_FILE, claim, forget, resumable, write_json

SUMMARY_FILE = "summary.json"
CHART_FILE = "chart.png"


def finetune(options: FinetuneOptions, data: RunData | None = None) -> Summary:
    """Run, continue, or look up the fine-tuning in `options.run_dir`; return what it has come to.

    Seeds that are finished are not repeated. Under torchrun all processes call this, and the first writes.
    `data` is what `load_data` returns for these options, if it has been read.

    Raises:
        UserError: for what the user can mend: model, data, settings, a full disk, a loss that diverged.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint is saved, and the same call continues.
    """
    with resumable(options.run_dir), Machine.joined("finetune.py", options.bf16) as machine:
        return _finetune(options, data, machine)


def _finetune(options: FinetuneOptions, data: RunData | None, machine: Machine) -> Summary:
    check_installed()
    check_reports(options.report_to)
    model = Path(options.model)
    config = read_config(model)
    longest = length_of(options, int(config.get("max_position_embeddings") or POSITIONS))
    options.micro_batch(machine.world)  # or it is refused
    train_fonts, test_fonts = (list(map(open_font, specs)) for specs in (options.train_font, options.test_font))
    if (train_fonts or test_fonts) and config["model_type"] != GLYPHCRM:
        raise UserError(f"{model}: reads no pictures; leave --train-font and --test-font out")
    data = load_data(options) if data is None else data
    is_new = not (options.run_dir / RUN_FILE).exists()
    if machine.is_first:
        contents = {"model_files": digests_of_model(model), "data": data.splits.fingerprint()}
        contents |= {"train_font_files": font_digests(train_fonts), "test_font_files": font_digests(test_fonts)}
        claim(options.run_dir, {"task": options.definition.name, **options.identity(), **contents})
        write_recipe(options.run_dir / RECIPE_FILE, {**asdict(options), **asdict(options.recipe)})
        print(announcement(options, data, longest), flush=True)
    machine.wait()
    results: list[SeedResult] = []
    try:
        fonts = Fonts()
        if train_fonts or test_fonts:
            fonts = Fonts.drawn(load_atlas(model), train_fonts, test_fonts, progress=machine.is_first)
        for seed in range(options.seeds):
            results.append(SeedRun(options, data, fonts, seed, machine).finish())
            if machine.is_first:
                keep_best_model(options, results)
    except Exception:
        if is_new and machine.is_first and not any(options.run_dir.glob("seed-*")):
            forget(options.run_dir)  # no seed has begun: the model could not be loaded, a text not be encoded
        raise
    summary = summarise(options, data, results)
    if machine.is_first:
        write_json(options.run_dir / SUMMARY_FILE, asdict(summary))
        draw_chart(options, data, best(results))
    return summary


def announcement(options: FinetuneOptions, data: RunData, longest: int) -> str:
    """Return what is about to be trained on what, in two lines."""
    task, recipe, sizes = options.definition, options.recipe, data.sizes
    lost = "" if options.keep_model == "best" else "; the model is not kept: --keep-model best keeps it"
    unit = {Kind.SENTENCE: "texts", Kind.PAIR: "pairs", Kind.TAGGING: "sentences"}[task.kind]
    return (
        f"{task.title}: {sizes['train']:,} training, {sizes['dev']:,} dev and {sizes['test']:,} test {unit}, "
        f"{len(data.splits.labels)} labels\n"
        f"{options.model}: {recipe.epochs} epochs in batches of {recipe.batch_size}, "
        f"at most {longest} tokens, peak learning rate {recipe.learning_rate:g}, {options.seeds} seeds; "
        f"results go to {options.run_dir}{lost}"
    )


def keep_best_model(options: FinetuneOptions, results: Sequence[SeedResult]) -> None:
    """Delete the models of all seeds but the best one so far."""
    kept = best(results).seed
    for result in results:
        if result.seed != kept:
            shutil.rmtree(seed_directory(options, result.seed) / MODEL_DIRECTORY, ignore_errors=True)


def summarise(options: FinetuneOptions, data: RunData, results: Sequence[SeedResult]) -> Summary:
    """Return what the seeds have come to together."""
    winner = best(results)
    in_fonts = {font: spreads([result.test_fonts[font] for result in results]) for font in winner.test_fonts}
    unseen = [result.test_unseen for result in results if result.test_unseen is not None]
    kept = seed_directory(options, winner.seed) / MODEL_DIRECTORY
    return Summary(
        task=options.definition.name,
        model=options.model,
        metric=options.definition.metric,
        sizes=data.sizes,
        dev=spreads([result.dev for result in results]),
        test=spreads([result.test for result in results]),
        test_unseen=spreads(unseen) if unseen else None,
        test_fonts=in_fonts,
        best_seed=winner.seed,
        parameters=winner.parameters,
        seconds=sum(result.seconds for result in results),
        notes=tuple(winner.notes),
        run_dir=str(options.run_dir),
        kept_model=str(kept) if options.keep_model == "best" and kept.exists() else None,
    )


def draw_chart(options: FinetuneOptions, data: RunData, result: SeedResult) -> None:
    """Draw chart.png of one seed's test predictions."""
    path = options.run_dir / CHART_FILE
    score = f"{result.metric} {result.test[result.metric]:.2%}"
    title = f"{options.definition.title}\ntest set, seed {result.seed}: {score}"
    if result.entities is not None:
        draw_entity_scores(result.entities, title, path)
        return
    rows = load_predictions(seed_directory(options, result.seed) / PREDICTIONS_FILE)
    gold, predicted = ([row[key] for row in rows] for key in ("gold", "predicted"))
    draw_confusion_matrix(gold, predicted, data.splits.labels, title, path)
