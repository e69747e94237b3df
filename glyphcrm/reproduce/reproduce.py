"""The whole reproduction, in the order in which its parts need each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.data.tasks import Splits, TaggedExample, Task
from glyphcrm.reproduce.held_out import held_out, task_for_held_out
from glyphcrm.reproduce.json_files import load_json, save_json
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import PLAN_FILE, Plan, make_plan
from glyphcrm.reproduce.report import write_report
from glyphcrm.reproduce.robustness import robustness
from glyphcrm.reproduce.stages import (
    ARCHITECTURES,
    available_tasks,
    best_variant,
    finetuning,
    pretraining,
    probe,
    study,
    summaries,
)
from glyphcrm.reproduce.study import runs_of_each
from glyphcrm.reproduce.trainings import Interrupted
from glyphcrm.reproduce.unknown_characters import beyond, count_unknown, unknown_to_bert
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.training.run_directory import MODEL_DIRECTORY, claim

INTERRUPTED_EXIT_CODE = 130
SETTINGS_FILE = "settings.json"
HELD_OUT_FILE = "held_out.json"
UNKNOWN_FILE = "unknown.json"
ROBUSTNESS = "robustness"


def reproduce(options: ReproduceOptions) -> int:
    """Run, or continue, a reproduction in `options.output_dir`; return the exit code.

    plan.json           steps and samples, from the time given and the speed measured
    study/              short pre-training runs of both models, for the settings that the paper leaves open
    pretraining/        both models, each with its best settings of the study
    finetuning/         task/model: see glyphcrm.finetuning.run
    held_out/           both models without a hundred characters
    robustness/         a file a task
    unknown.json        characters that the vocabularies lack
    report/             RESULTS.md, charts, results.json

    Raises:
        UserError: for what the user can mend: text, data, settings, files.
    """
    tasks = available_tasks(options)
    claim(options.output_dir, options.identity())
    try:
        plan = _plan(options, tasks)
        settings = _settings(options, plan)
        models = {arch: options.output_dir / "pretraining" / arch / MODEL_DIRECTORY for arch in ARCHITECTURES}
        if "pretraining" not in options.without:
            pretraining(options, plan, settings)
        if "unknown" not in options.without:
            _unknown(options, tasks, models["glyphcrm"])
        if "finetuning" not in options.without:
            finetuning(options, plan, models, list(tasks))
        if "robustness" not in options.without:
            _robustness(options, list(tasks))
        if "held_out" not in options.without:
            _held_out(options, plan, tasks, settings)
    except Interrupted:
        print("interrupted; the same command continues")
        return INTERRUPTED_EXIT_CODE
    print(f"\n{write_report(options, plan, tasks)}")
    return 0


def _plan(options: ReproduceOptions, tasks: dict[Task, Splits]) -> Plan:
    if not (options.output_dir / PLAN_FILE).exists():
        make_plan(options, probe(options), tasks, runs_of_each()).save(options.output_dir)
    return Plan.load(options.output_dir)


def _settings(options: ReproduceOptions, plan: Plan) -> dict[str, Sequence[str]]:
    """Return each architecture's best settings of the study, kept once they are known; without the study, none."""
    path = options.output_dir / SETTINGS_FILE
    if not path.exists():
        if "study" in options.without:
            return dict.fromkeys(ARCHITECTURES, ())
        runs = study(options, plan)
        save_json(path, {arch: best_variant(runs, arch).arguments for arch in ARCHITECTURES})
    settings: dict[str, Sequence[str]] = load_json(path)
    return settings


def _unknown(options: ReproduceOptions, tasks: dict[Task, Splits], model: Path) -> None:
    """Count what the vocabularies lack, of all texts of each task (the paper's Table 1)."""
    path = options.output_dir / UNKNOWN_FILE
    if path.exists():
        return
    tokenizer = GlyphCRMTokenizer.from_pretrained(model)
    config = GlyphCRMConfig.from_pretrained(model)
    vocabularies = {
        "GlyphCRM, to read": beyond(tokenizer, tokenizer.vocab_size),
        "GlyphCRM, to predict": beyond(tokenizer, config.vocab_size),
    }
    if options.bert_vocabulary:
        vocabularies = {"bert-base-chinese": unknown_to_bert(options.bert_vocabulary), **vocabularies}
    counted = [
        found.as_json()
        for task, splits in tasks.items()
        for found in count_unknown(task.title, _texts(splits), vocabularies)
    ]
    save_json(path, counted)


def _texts(splits: Splits) -> list[str]:
    return [
        "".join(example.characters) if isinstance(example, TaggedExample) else example.text + (example.pair or "")
        for part in (splits.train, splits.dev, splits.test)
        for example in part
    ]


def _robustness(options: ReproduceOptions, tasks: Sequence[Task]) -> None:
    tuned: dict[str, dict[str, Any]] = {}
    for name, arch, summary, _ in summaries(options.output_dir):
        tuned.setdefault(name, {})[arch] = summary
    for task in tasks:
        path = options.output_dir / ROBUSTNESS / f"{task.name}.json"
        if task.name in tuned and not path.exists():
            print(f"rewriting the test texts of {task.title}", flush=True)
            save_json(path, robustness(options, task, tuned[task.name]))


def _held_out(
    options: ReproduceOptions, plan: Plan, tasks: dict[Task, Splits], settings: dict[str, Sequence[str]]
) -> None:
    path = options.output_dir / HELD_OUT_FILE
    task = task_for_held_out(tasks)
    if task is None or path.exists():
        return
    save_json(path, held_out(options, plan, task, tasks[task], settings))
