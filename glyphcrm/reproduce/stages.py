"""The trainings of a reproduction, each in a directory of its own; what is finished is not run again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glyphcrm.data.tasks import TASKS, Splits, Task, find_task, load_splits
from glyphcrm.errors import UserError
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import PROBE_STEPS, Plan, Speed, measured_speed
from glyphcrm.reproduce.study import VARIANTS, Variant
from glyphcrm.reproduce.trainings import run_finetune, run_pretrain
from glyphcrm.training.callbacks import METRICS_FILE, read_metrics
from glyphcrm.training.run_directory import MODEL_DIRECTORY

ARCHITECTURES = ("glyphcrm", "bert")
EVALUATIONS = 10  # of a long pre-training run
SHORT_EVALUATIONS = 2
VALIDATION_SAMPLES = 512
# The paper's rates are those of a base model; smaller ones, trained for less long, need larger steps.
FINETUNING_RATES = {"base": None, "small": 1e-4, "tiny": 3e-4, "nano": 1e-3}
DEMO_TASKS = ("demo_sentiment", "demo_ner")


def available_tasks(options: ReproduceOptions) -> dict[Task, Splits]:
    """Return the tasks to fine-tune on with their examples: those named, or all whose files are there.

    Raises:
        UserError: a task that was named cannot be read, or none is there.
    """
    if options.tasks:
        return {task: load_splits(task, options.data) for task in map(find_task, options.tasks)}
    if options.data is None:
        return {task: load_splits(task, None) for task in map(find_task, DEMO_TASKS)}
    there = [task for name, task in TASKS.items() if name not in DEMO_TASKS and (options.data / task.folder).is_dir()]
    if not there:
        raise UserError(f"{options.data}: no folder of a task there ({', '.join(t.folder for t in TASKS.values())})")
    return {task: load_splits(task, options.data) for task in there}


def probe(options: ReproduceOptions) -> dict[str, Speed]:
    """Measure the speed of both models on the text."""
    speed = {}
    for arch in ARCHITECTURES:
        directory = options.output_dir / "probe" / arch
        pretrain(options, directory, arch, PROBE_STEPS, ("--eval-samples", "8", "--warmup-steps", "4"))
        speed[arch] = measured_speed(read_metrics(directory / METRICS_FILE))
    return speed


def study(options: ReproduceOptions, plan: Plan) -> dict[Variant, Path]:
    """Run every variant of the study; return the directories."""
    directories = {variant: options.output_dir / "study" / variant.name for variant in VARIANTS}
    for variant, directory in directories.items():
        pretrain(options, directory, variant.arch, plan.study_steps, variant.arguments)
    return directories


def best_variant(runs: dict[Variant, Path], arch: str) -> Variant:
    """Return the variant of an architecture with the lowest validation MLM loss at its end."""
    own = {variant: last_validation(path)["eval_mlm_loss"] for variant, path in runs.items() if variant.arch == arch}
    return min(own, key=lambda variant: own[variant])


def pretraining(options: ReproduceOptions, plan: Plan, settings: dict[str, Sequence[str]]) -> dict[str, Path]:
    """Pre-train both models, each with its settings; return the directories of the runs."""
    directories = {arch: options.output_dir / "pretraining" / arch for arch in ARCHITECTURES}
    for arch, directory in directories.items():
        pretrain(options, directory, arch, plan.pretraining_steps, settings[arch], evaluations=EVALUATIONS)
    return directories


def finetuning(options: ReproduceOptions, plan: Plan, models: dict[str, Path], tasks: Sequence[Task]) -> None:
    """Fine-tune both models on every task, into ``finetuning/TASK/ARCHITECTURE``."""
    for task in tasks:
        for arch, model in models.items():
            finetune(options, plan, task, model, options.output_dir / "finetuning" / task.name / arch)


def pretrain(
    options: ReproduceOptions,
    directory: Path,
    arch: str,
    steps: int,
    settings: Sequence[str],
    *,
    evaluations: int = SHORT_EVALUATIONS,
    text: str = "text",
) -> None:
    """Run pretrain.py in `directory`; runs with the same `text` share what is made of the text."""
    if (directory / MODEL_DIRECTORY).exists():
        return
    files = ("--data", *options.text) if options.text else ()
    every = max(1, steps // evaluations)
    defaults = {
        "--warmup-steps": max(1, steps // 10),
        "--eval-samples": VALIDATION_SAMPLES,
        "--log-every": 1,
    }
    run_pretrain(
        [
            *("--arch", arch, "--preset", options.preset, *files),
            *("--output-dir", directory, "--data-dir", options.output_dir / text),
            *("--vocabulary-size", options.vocabulary_size, "--max-length", options.max_length),
            *("--batch-size", options.batch_size, "--micro-batch-size", options.batch_size),
            *("--steps", steps, "--eval-every", every, "--save-every", every),
            *(word for name, value in defaults.items() if name not in settings for word in (name, value)),
            *settings,
        ],
    )


def finetune(options: ReproduceOptions, plan: Plan, task: Task, model: Path, directory: Path) -> None:
    """Run finetune.py in `directory`."""
    if (directory / "summary.json").exists():
        return
    data = ("--data", options.data) if options.data and task.folder else ()
    cap, rate = plan.train_samples, FINETUNING_RATES[options.preset]
    # A task of one's own has the name of its file.
    named = next((given for given in options.tasks if Path(given).stem == task.name), task.name)
    own_rate = ("--learning-rate", rate) if rate else ()
    run_finetune(
        [
            *("--task", named, "--model", model, *data, "--output-dir", directory),
            *("--seeds", options.seeds, *own_rate),
            *("--train-samples", cap, "--dev-samples", cap, "--test-samples", cap, "--keep-model", "best"),
        ],
    )


def last_validation(directory: Path) -> dict[str, Any]:
    """Return the last validation of a pre-training run."""
    return [entry for entry in read_metrics(directory / METRICS_FILE) if "eval_mlm_loss" in entry][-1]


def summaries(output_dir: Path) -> Iterator[tuple[str, str, dict[str, Any], Path]]:
    """Yield task, architecture, summary and its file, of every fine-tuning that is finished."""
    for path in sorted((output_dir / "finetuning").glob("*/*/summary.json")):
        yield path.parts[-3], path.parts[-2], json.loads(path.read_text(encoding="utf-8")), path
