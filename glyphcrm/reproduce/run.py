"""The whole reproduction, in the order in which its parts need each other."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from glyphcrm.checkpoint import WEIGHTS_FILE
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError
from glyphcrm.files import file_digest
from glyphcrm.glyphs.fonts import split_spec
from glyphcrm.pretraining.corpus import DIGESTS_FILE, Text
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.reproduce import held_out, other_fonts
from glyphcrm.reproduce.held_out import compare_held_out
from glyphcrm.reproduce.inputs import check_inputs
from glyphcrm.reproduce.kept import keep
from glyphcrm.reproduce.open_vocabulary import held_out_sentences, open_prediction
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.other_fonts import compare_fonts
from glyphcrm.reproduce.plan import Plan, Speed, make_plan, task_of_sentences
from glyphcrm.reproduce.report import PLAN_FILE, write_report
from glyphcrm.reproduce.robustness import score_rewritten
from glyphcrm.reproduce.side_by_side import Job, Workers, fitting
from glyphcrm.reproduce.stages import (
    ARCHITECTURES,
    SEEDS,
    Choice,
    available_tasks,
    fine_tuning,
    pretraining,
    probe,
    run_study,
    seed_directory,
    summaries,
)
from glyphcrm.reproduce.substitutions import whole_text
from glyphcrm.reproduce.trials import variants
from glyphcrm.reproduce.unknown_characters import beyond, count_unknown, unknown_to_bert
from glyphcrm.tasks import Splits, Task
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.training.run_directory import DATA_DIRECTORY, MODEL_DIRECTORY, claim, read_json, resumable, write_json

CHOICES_FILE = "choices.json"
HELD_OUT_FILE = "held_out.json"
UNKNOWN_FILE = "unknown.json"
OPEN_PREDICTION_FILE = "open_prediction.json"
OTHER_FONTS_FILE = "other_fonts.json"
ROBUSTNESS = "robustness"


@dataclass
class Reproduction:
    """What the stages share: what was asked for, what is there, and what does the work."""

    options: ReproduceOptions
    tasks: dict[Task, Splits]
    plan: Plan
    choices: dict[str, Choice]  # of each architecture
    workers: Workers

    @property
    def models(self) -> dict[str, Path]:
        """The pre-trained model of each architecture, of the first seed, which the stages go on with."""
        return {
            arch: seed_directory(self.options, choice, 0) / MODEL_DIRECTORY for arch, choice in self.choices.items()
        }


def reproduce(options: ReproduceOptions) -> Path:
    """Run, or continue, a reproduction in `options.output_dir`; return the path of its RESULTS.md.

    plan.json           steps, samples and seeds, from the time given and the speed measured
    study/              both models with several settings that the paper leaves open, the best ones trained to the end
    choices.json        which those are
    pretraining/        these with other seeds
    finetuning/         task/model: see glyphcrm.finetuning.run
    held_out/           both models without a hundred characters
    robustness/         a file a task
    open_prediction.json    characters without a learned decoder row
    other_fonts/        GlyphCRM trained further, in one font and in several
    unknown.json        characters that the vocabularies lack
    logs/               of each run what it has said
    report/             RESULTS.md, charts, results.json; written anew after each stage
    keep/               60 MB at most: the report, and the models in half precision

    Raises:
        UserError: for what the user can mend: text, data, settings, files; or runs have failed.
        KeyboardInterrupt: it was stopped; the same call continues.
    """
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_REAL, 60 * (options.stop_after or 0))
    try:
        with resumable(options.output_dir):
            return _reproduce(options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("stopped; the same command continues")


def _reproduce(options: ReproduceOptions) -> Path:
    check_inputs(options)
    tasks = available_tasks(options)
    text = Text(PretrainOptions(data=list(options.text)))
    contents = text.contents(options.output_dir / DATA_DIRECTORY / DIGESTS_FILE)
    claim(options.output_dir, {**options.identity(), "text": text.fingerprint(contents)})
    workers = Workers(options.output_dir, options.side_by_side or fitting(options.preset))
    plan = _plan(options, tasks, workers)
    reproduction = Reproduction(options, tasks, plan, _choices(options, plan, workers), workers)
    _pretraining(reproduction)
    results, table = _write(reproduction)
    for name, stage in STAGES.items():
        if name not in options.without:
            stage(reproduction)
            results, table = _write(reproduction)
    print(f"\n{table}")
    if workers.failures:
        listed = "; ".join(workers.failures[:3])
        raise UserError(f"{results} is without {len(workers.failures)} runs; the same command tries again: {listed}")
    return results


def _write(reproduction: Reproduction) -> tuple[Path, str]:
    """Write the report of what there is, and what is to be kept; return the path of RESULTS.md and its main table."""
    options, plan, choices = reproduction.options, reproduction.plan, reproduction.choices
    results, table = write_report(options, plan, reproduction.tasks, choices, reproduction.workers.failures)
    seeds = range(plan.pretraining_seeds)
    keep(options.output_dir, [seed_directory(options, choice, seed) for seed in seeds for choice in choices.values()])
    return results, table


def _plan(options: ReproduceOptions, tasks: dict[Task, Splits], workers: Workers) -> Plan:
    path = options.output_dir / PLAN_FILE
    if not path.exists():
        studied = [] if "study" in options.without else [variant.arch for variant in variants(options.preset)]
        plan = make_plan(options, probe(options, workers), tasks, studied, workers.at_once)
        write_json(path, asdict(plan))
    kept = read_json(path)
    return Plan(**kept | {"speed": {arch: Speed(**speed) for arch, speed in kept["speed"].items()}})


def _choices(options: ReproduceOptions, plan: Plan, workers: Workers) -> dict[str, Choice]:
    """Return each architecture's best settings of the study, kept once they are known; without it, the middle ones.

    (The recipe of a preset is for a short run, and its rate too high for a long one.)
    """
    if "study" in options.without:
        names = {f"{arch}-rate" for arch in ARCHITECTURES}
        middle = [variant for variant in variants(options.preset) if variant.name in names]
        return {variant.arch: Choice(f"{SEEDS}/{variant.name}", variant.arguments) for variant in middle}
    path = options.output_dir / CHOICES_FILE
    if not path.exists():
        write_json(path, {arch: asdict(choice) for arch, choice in run_study(options, plan, workers).items()})
    return {arch: Choice(kept["directory"], tuple(kept["arguments"])) for arch, kept in read_json(path).items()}


def _pretraining(reproduction: Reproduction) -> None:
    """Train the best settings to the end: the first seed from where the study left it, others from the start.

    Raises:
        UserError: without a first seed there is nothing to compare.
    """
    options, plan, workers = reproduction.options, reproduction.plan, reproduction.workers
    jobs = [
        pretraining(
            options,
            seed_directory(options, choice, seed),
            arch,
            plan.pretraining_steps,
            (*choice.arguments, "--seed", str(seed)),
            seconds=plan.seconds(arch, plan.pretraining_steps),
        )
        for seed in range(plan.pretraining_seeds)
        for arch, choice in reproduction.choices.items()
    ]
    if not workers.run(jobs) and not all(model.exists() for model in reproduction.models.values()):
        raise UserError(workers.failures[-1])


def _finetuning(reproduction: Reproduction) -> None:
    options, plan = reproduction.options, reproduction.plan
    jobs = []
    for task, splits in reproduction.tasks.items():
        directory = options.output_dir / "finetuning" / task.name
        claim(directory, {"data": splits.fingerprint()})  # else what is done would be taken for that of other examples
        for arch, model in reproduction.models.items():
            seconds = plan.seconds_of_finetuning(arch, task, splits, options.seeds)
            jobs.append(fine_tuning(options, plan, task, model, directory / arch, seconds=seconds))
    reproduction.workers.run(jobs)


def _unknown(reproduction: Reproduction) -> None:
    """Count what the vocabularies lack, of all texts of each task (the paper's Table 1)."""
    options, tasks, model = reproduction.options, reproduction.tasks, reproduction.models["glyphcrm"]
    path = options.output_dir / UNKNOWN_FILE
    data = {task.name: splits.fingerprint() for task, splits in tasks.items()}
    inputs = {"tasks": data, "bert_vocabulary": options.bert_vocabulary and file_digest(options.bert_vocabulary)}
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


def _open_prediction(reproduction: Reproduction) -> None:
    """Ask for characters without a learned decoder row, and for those that the pre-training of `held_out` lacked."""
    options, model = reproduction.options, reproduction.models["glyphcrm"]
    path, lacking = options.output_dir / OPEN_PREDICTION_FILE, options.output_dir / held_out.DIRECTORY
    without = lacking / "pretraining" / "glyphcrm" / MODEL_DIRECTORY
    inputs = {"models": [file_digest(of / WEIGHTS_FILE) for of in (model, without) if of.exists()]}
    if _is_made_from(path, inputs):
        return
    sentences, counts = held_out_sentences(options.text)
    result = {"inputs": inputs, "all": open_prediction(model, sentences, counts)}
    if without.exists():
        characters = (lacking / held_out.CHARACTERS_FILE).read_text(encoding="utf-8")
        result["held_out"] = open_prediction(without, sentences, counts, characters)
    write_json(path, result)


def _robustness(reproduction: Reproduction) -> None:
    options, plan = reproduction.options, reproduction.plan
    tuned: dict[str, dict[str, Path]] = {}
    for name, arch, summary, path in summaries(options.output_dir):
        # Not the path that it names, which may be relative to where an earlier call was made.
        tuned.setdefault(name, {})[arch] = path.parent / f"seed-{summary['best_seed']}" / MODEL_DIRECTORY
    inputs = {
        "look_alikes": options.look_alikes and file_digest(options.look_alikes),
        "opencc": version("opencc"),
        "other_font": options.other_font and _identity_of(options.other_font),
    }
    jobs = []
    for task, splits in reproduction.tasks.items():
        path = options.output_dir / ROBUSTNESS / f"{task.name}.json"
        if tuned.get(task.name, {}).keys() >= set(ARCHITECTURES) and not _is_made_from(path, inputs):
            path.unlink(missing_ok=True)
            arguments = (options, task, tuned[task.name], inputs, path)
            seconds = max(plan.seconds_of_finetuning(arch, task, splits, options.seeds) for arch in ARCHITECTURES)
            jobs.append(Job(f"{ROBUSTNESS}/{task.name}", path, _rewrite, arguments, seconds))
    reproduction.workers.run(jobs)


def _rewrite(options: ReproduceOptions, task: Task, tuned: dict[str, Path], inputs: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"inputs": inputs, **score_rewritten(options, task, tuned)})


def _other_fonts(reproduction: Reproduction) -> None:
    """Train in the fonts of `--train-font`, if there are any, and as long in one; test in the one of `--other-font`."""
    options, task = reproduction.options, task_of_sentences(reproduction.tasks)
    path, font = options.output_dir / OTHER_FONTS_FILE, options.other_font
    if task is None or font is None or not options.train_font:
        return
    data = reproduction.tasks[task].fingerprint()
    trained = [_identity_of(spec) for spec in options.train_font]
    inputs = {"task": task.name, "data": data, "train_fonts": trained, "other_font": _identity_of(font)}
    if _is_made_from(path, inputs):
        return
    claim(options.output_dir / other_fonts.DIRECTORY, inputs)
    model, workers = reproduction.models["glyphcrm"], reproduction.workers
    result = compare_fonts(options, reproduction.plan, task, model, options.train_font, font, workers)
    if result is not None:
        write_json(path, {"inputs": inputs, **result})


def _held_out(reproduction: Reproduction) -> None:
    options, task = reproduction.options, task_of_sentences(reproduction.tasks)
    path = options.output_dir / HELD_OUT_FILE
    if task is None:
        return
    splits = reproduction.tasks[task]
    inputs = {"task": task.name, "data": splits.fingerprint()}
    if _is_made_from(path, inputs):
        return
    claim(options.output_dir / held_out.DIRECTORY, inputs)
    result = compare_held_out(options, reproduction.plan, task, splits, reproduction.choices, reproduction.workers)
    if result is not None:
        write_json(path, {"inputs": inputs, **result})


# A stage takes a `Reproduction`, does what is not done yet, and leaves files that the report reads.
STAGES: dict[str, Callable[[Reproduction], None]] = {
    "unknown": _unknown,
    "finetuning": _finetuning,
    "robustness": _robustness,
    "held_out": _held_out,
    "open_prediction": _open_prediction,
    "other_fonts": _other_fonts,
}


def _identity_of(font: str) -> list[str | None]:
    """Return what a font is, wherever it lies: the digest of its file, and the face of a collection."""
    path, face = split_spec(font)
    return [file_digest(path), face]


def _is_made_from(path: Path, inputs: Any) -> bool:
    """Whether `path` holds what was made from these inputs, which it keeps under "inputs"."""
    return path.exists() and read_json(path).get("inputs") == json.loads(json.dumps(inputs))
