"""The whole reproduction, in the order in which its parts need each other."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glyphcrm.checkpoint import WEIGHTS_FILE
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.reproduce import held_out
from glyphcrm.reproduce.held_out import compare_held_out
from glyphcrm.reproduce.open_vocabulary import held_out_sentences, open_prediction
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import Plan, Speed, make_plan
from glyphcrm.reproduce.report import PLAN_FILE, read_paper_scores, write_report
from glyphcrm.reproduce.robustness import score_rewritten
from glyphcrm.reproduce.stages import (
    ARCHITECTURES,
    Choice,
    available_tasks,
    finetune,
    pretrain,
    probe,
    run_study,
    summaries,
)
from glyphcrm.reproduce.substitutions import read_look_alikes, to_traditional, whole_text
from glyphcrm.reproduce.trials import variants
from glyphcrm.reproduce.unknown_characters import beyond, count_unknown, unknown_to_bert
from glyphcrm.tasks import Kind, Splits, Task
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.training.run_directory import MODEL_DIRECTORY, claim, read_json, resumable, write_json

CHOICES_FILE = "choices.json"
HELD_OUT_FILE = "held_out.json"
UNKNOWN_FILE = "unknown.json"
OPEN_PREDICTION_FILE = "open_prediction.json"
ROBUSTNESS = "robustness"


def reproduce(options: ReproduceOptions) -> Path:
    """Run, or continue, a reproduction in `options.output_dir`; return the path of its RESULTS.md.

    plan.json           steps and samples, from the time given and the speed measured
    study/              both models with several settings that the paper leaves open, the best ones trained to the end
    choices.json        which those are
    finetuning/         task/model: see glyphcrm.finetuning.run
    held_out/           both models without a hundred characters
    robustness/         a file a task
    open_prediction.json    characters without a learned decoder row
    unknown.json        characters that the vocabularies lack
    report/             RESULTS.md, charts, results.json

    Raises:
        UserError: for what the user can mend: text, data, settings, files.
        KeyboardInterrupt: it was stopped; the same call continues.
    """
    with resumable(options.output_dir):
        return _reproduce(options)


def _reproduce(options: ReproduceOptions) -> Path:
    tasks = available_tasks(options)
    _check_files(options)
    claim(options.output_dir, options.identity())
    plan = _plan(options, tasks)
    choices = _choices(options, plan)
    models = {arch: options.output_dir / choice.directory / MODEL_DIRECTORY for arch, choice in choices.items()}
    for arch, choice in choices.items():  # from where the study left it
        pretrain(options, options.output_dir / choice.directory, arch, plan.pretraining_steps, choice.arguments)
    if "unknown" not in options.without:
        _unknown(options, tasks, models["glyphcrm"])
    if "finetuning" not in options.without:
        for task in tasks:
            for arch, model in models.items():
                finetune(options, plan, task, model, options.output_dir / "finetuning" / task.name / arch)
    if "robustness" not in options.without:
        _robustness(options, list(tasks))
    if "held_out" not in options.without:
        _held_out(options, plan, tasks, choices)
    if "open_prediction" not in options.without:
        _open_prediction(options, models["glyphcrm"])
    return write_report(options, plan, tasks, choices)


def _check_files(options: ReproduceOptions) -> None:
    """Read what is needed late, so that a wrong file, or a missing package, is found before the first training."""
    if options.bert_vocabulary:
        unknown_to_bert(options.bert_vocabulary)
    if options.look_alikes:
        read_look_alikes(options.look_alikes)
    if "robustness" not in options.without:
        to_traditional("")
    if options.other_font:
        open_font(options.other_font)
    if options.paper_scores:
        read_paper_scores(options.paper_scores)


def _plan(options: ReproduceOptions, tasks: dict[Task, Splits]) -> Plan:
    path = options.output_dir / PLAN_FILE
    if not path.exists():
        runs_of_each = math.ceil(len(variants(options.preset)) / len(ARCHITECTURES))
        write_json(path, asdict(make_plan(options, probe(options), tasks, runs_of_each)))
    kept = read_json(path)
    return Plan(**kept | {"speed": {arch: Speed(**speed) for arch, speed in kept["speed"].items()}})


def _choices(options: ReproduceOptions, plan: Plan) -> dict[str, Choice]:
    """Return each architecture's best settings of the study, kept once they are known; without it, the middle ones.

    (The recipe of a preset is for a short run, and its rate too high for a long one.)
    """
    if "study" in options.without:
        names = {f"{arch}-rate" for arch in ARCHITECTURES}
        middle = [variant for variant in variants(options.preset) if variant.name in names]
        return {variant.arch: Choice(f"pretraining/{variant.arch}", variant.arguments) for variant in middle}
    path = options.output_dir / CHOICES_FILE
    if not path.exists():
        write_json(path, {arch: asdict(choice) for arch, choice in run_study(options, plan).items()})
    return {arch: Choice(kept["directory"], tuple(kept["arguments"])) for arch, kept in read_json(path).items()}


def _unknown(options: ReproduceOptions, tasks: dict[Task, Splits], model: Path) -> None:
    """Count what the vocabularies lack, of all texts of each task (the paper's Table 1)."""
    path = options.output_dir / UNKNOWN_FILE
    sizes = {task.name: [len(splits.train), len(splits.dev), len(splits.test)] for task, splits in tasks.items()}
    inputs = {"tasks": sizes, "bert_vocabulary": _digest(options.bert_vocabulary)}
    if _is_made_from(path, inputs):
        return
    tokenizer = GlyphCRMTokenizer.from_pretrained(model)
    config = GlyphCRMConfig.from_pretrained(model)
    vocabularies = {
        "GlyphCRM, to read": beyond(tokenizer, tokenizer.vocab_size),
        "GlyphCRM, to predict": beyond(tokenizer, config.vocab_size),
    }
    if options.bert_vocabulary:
        vocabularies = {"bert-base-chinese": unknown_to_bert(options.bert_vocabulary), **vocabularies}
    counted: list[dict[str, Any]] = []
    for task, splits in tasks.items():
        texts = (whole_text(example) for part in splits.parts.values() for example in part)
        counted += count_unknown(task.title, texts, vocabularies)
    write_json(path, {"inputs": inputs, "counted": counted})


def _open_prediction(options: ReproduceOptions, model: Path) -> None:
    """Ask for characters without a learned decoder row, and for those that the pre-training of `held_out` lacked."""
    path, lacking = options.output_dir / OPEN_PREDICTION_FILE, options.output_dir / held_out.DIRECTORY
    without = lacking / "pretraining" / "glyphcrm" / MODEL_DIRECTORY
    inputs = {"models": [_digest(of / WEIGHTS_FILE) for of in (model, without) if of.exists()]}
    if _is_made_from(path, inputs):
        return
    sentences = held_out_sentences(options.text)
    result = {"inputs": inputs, "all": open_prediction(model, sentences)}
    if without.exists():
        characters = (lacking / held_out.CHARACTERS_FILE).read_text(encoding="utf-8")
        result["held_out"] = open_prediction(without, sentences, characters)
    write_json(path, result)


def _robustness(options: ReproduceOptions, tasks: Sequence[Task]) -> None:
    tuned: dict[str, dict[str, Any]] = {}
    for name, arch, summary, _ in summaries(options.output_dir):
        tuned.setdefault(name, {})[arch] = summary
    inputs = {
        "look_alikes": _digest(options.look_alikes),
        "opencc": version("opencc"),
        "other_font": options.other_font,
    }
    for task in tasks:
        path = options.output_dir / ROBUSTNESS / f"{task.name}.json"
        if task.name in tuned and not _is_made_from(path, inputs):
            print(f"rewriting the test texts of {task.title}", flush=True)
            path.parent.mkdir(exist_ok=True)
            write_json(path, {"inputs": inputs, **score_rewritten(options, task, tuned[task.name])})


def _held_out(options: ReproduceOptions, plan: Plan, tasks: dict[Task, Splits], choices: dict[str, Choice]) -> None:
    path = options.output_dir / HELD_OUT_FILE
    # On the words of reviews and titles one character matters most.
    task = next((task for task in tasks if task.kind is Kind.SENTENCE), None)
    if task is None or _is_made_from(path, {"task": task.name}):
        return
    write_json(path, {"inputs": {"task": task.name}, **compare_held_out(options, plan, task, tasks[task], choices)})


def _is_made_from(path: Path, inputs: Any) -> bool:
    """Whether `path` holds what was made from these inputs, which it keeps under "inputs"."""
    return path.exists() and read_json(path).get("inputs") == json.loads(json.dumps(inputs))


def _digest(path: Path | None) -> str | None:
    """Return the SHA-256 of a file; None for none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else None
