"""The trainings of a reproduction, each in a directory of its own; what is finished is not run again."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glyphcrm.errors import UserError
from glyphcrm.finetuning import run as finetuning
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.finetuning.results import describe
from glyphcrm.pretraining import run as pretraining
from glyphcrm.pretraining.options import RECIPES, PretrainOptions
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import FEWEST_TEST_SAMPLES, PROBE_STEPS, Plan, Speed, evaluate_every, measured_speed
from glyphcrm.reproduce.trials import Variant, variants
from glyphcrm.tasks import TASKS, Splits, Task, find_task, load_splits
from glyphcrm.training.loop import TrainingDiverged
from glyphcrm.training.progress import METRICS_FILE, read_metrics
from glyphcrm.training.run_directory import MODEL_DIRECTORY, read_json

ARCHITECTURES = ("glyphcrm", "bert")
STUDY = "study"
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


@dataclass(frozen=True)
class Choice:
    """The settings that a model is pre-trained with."""

    directory: str  # of its run, relative to that of the reproduction
    arguments: tuple[str, ...]  # for pretrain.py


def run_study(options: ReproduceOptions, plan: Plan) -> dict[str, Choice]:
    """Run the beginning of every variant; return the best of each architecture's trials, by validation MLM loss."""
    losses: dict[Variant, float] = {}
    for variant in variants(options.preset):
        directory = variant_directory(options, variant)
        stop = ("--stop-after", str(plan.study_steps))
        try:
            pretrain(options, directory, variant.arch, plan.pretraining_steps, (*variant.arguments, *stop))
        except TrainingDiverged as error:
            print(f"{variant.name} is out: {error}", flush=True)
            losses[variant] = math.inf
        else:
            losses[variant] = validations(directory, plan.study_steps)[-1]["eval_mlm_loss"]
    best = {
        arch: min((v for v in losses if v.arch == arch and not v.is_ablation), key=lambda v: losses[v])
        for arch in ARCHITECTURES
    }
    return {arch: Choice(f"{STUDY}/{variant.name}", variant.arguments) for arch, variant in best.items()}


def variant_directory(options: ReproduceOptions, variant: Variant) -> Path:
    """Return where a variant's run is."""
    return options.output_dir / STUDY / variant.name


def pretrain(
    options: ReproduceOptions, directory: Path, arch: str, steps: int, settings: Sequence[str], text: str = "text"
) -> None:
    """Run pretrain.py in `directory`; runs with the same `text` share what is made of the text."""
    if (directory / MODEL_DIRECTORY).exists():
        return
    files = ("--data", *options.text) if options.text else ()
    every = evaluate_every(steps)
    recipe = RECIPES[options.preset]
    fits = recipe.micro_batch_size * recipe.max_length // options.max_length  # as many characters at once
    micro = math.gcd(options.batch_size, 1 << max(fits, 1).bit_length() - 1)
    defaults = {"--warmup-steps": every, "--eval-samples": VALIDATION_SAMPLES, "--log-every": 1}
    run_pretrain(
        [
            *("--arch", arch, "--preset", options.preset, *files),
            *("--output-dir", directory, "--data-dir", options.output_dir / text),
            *("--vocabulary-size", options.vocabulary_size, "--max-length", options.max_length),
            *("--batch-size", options.batch_size, "--micro-batch-size", micro),
            *("--steps", steps, "--eval-every", every, "--save-every", every),
            *(word for name, value in defaults.items() if name not in settings for word in (name, value)),
            *settings,
        ]
    )


def finetune(
    options: ReproduceOptions, plan: Plan, task: Task, model: Path, directory: Path, settings: Sequence[str] = ()
) -> None:
    """Run finetune.py in `directory`."""
    if (directory / "summary.json").exists():
        return
    data = ("--data", options.data) if options.data and task.folder else ()
    cap, rate = plan.train_samples, FINETUNING_RATES[options.preset]
    own_rate = ("--learning-rate", rate) if rate else ()
    # A task of one's own has the name of its file.
    named = next((given for given in options.tasks if Path(given).stem == task.name), task.name)
    run_finetune(
        [
            *("--task", named, "--model", model, *data, "--output-dir", directory),
            *("--seeds", options.seeds, *own_rate),
            *("--train-samples", cap, "--dev-samples", cap, "--test-samples", max(cap, FEWEST_TEST_SAMPLES)),
            *("--keep-model", "best", *settings),
        ]
    )


def validations(directory: Path, until: int) -> list[dict[str, float]]:
    """Return the validations of a pre-training run up to a step, the first one before step 1."""
    entries = read_metrics(directory / METRICS_FILE)
    return [entry for entry in entries if "eval_mlm_loss" in entry and entry["step"] <= until]


def summaries(output_dir: Path) -> Iterator[tuple[str, str, dict[str, Any], Path]]:
    """Yield task, architecture, summary and its file, of every fine-tuning that is finished."""
    for path in sorted((output_dir / "finetuning").glob("*/*/summary.json")):
        yield path.parts[-3], path.parts[-2], read_json(path), path


def run_pretrain(arguments: Sequence[object]) -> None:
    """Do what ``pretrain.py`` does with these arguments."""
    with _announced("pretrain.py", arguments) as words:
        pretraining.pretrain(PretrainOptions.parse(words))


def run_finetune(arguments: Sequence[object]) -> None:
    """Do what ``finetune.py`` does with these arguments."""
    with _announced("finetune.py", arguments) as words:
        print(describe(finetuning.finetune(FinetuneOptions.parse(words))), flush=True)


@contextlib.contextmanager
def _announced(program: str, arguments: Sequence[object]) -> Iterator[list[str]]:
    """Print a command; take back the signal handlers that a training sets."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ python {program} {shlex.join(words)}", flush=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield words
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
