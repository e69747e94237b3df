"""The trainings of a reproduction, each in a directory of its own."""

from __future__ import annotations

import itertools
import math
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glyphcrm.errors import UserError
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.finetuning.results import describe
from glyphcrm.finetuning.run import SUMMARY_FILE, finetune
from glyphcrm.pretraining.options import RECIPES, PretrainOptions
from glyphcrm.pretraining.run import pretrain
from glyphcrm.reproduce.inputs import tasks_there
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import (
    FEWEST_TEST_SAMPLES,
    GPU_PROBE_STEPS,
    PROBE_STEPS,
    Plan,
    Speed,
    evaluate_every,
    measured_speed,
)
from glyphcrm.reproduce.side_by_side import Job, Workers
from glyphcrm.reproduce.trials import Variant, variants
from glyphcrm.tasks import Splits, Task, load_splits
from glyphcrm.training.progress import METRICS_FILE, read_metrics
from glyphcrm.training.run_directory import COMPLETE_FILE, DATA_DIRECTORY, MODEL_DIRECTORY, read_json

ARCHITECTURES = ("glyphcrm", "bert")
PROBE, STUDY, SEEDS = "probe", "study", "pretraining"  # directories
SAVE_MINUTES = 1  # a log may come a minute later
VALIDATION_SAMPLES = 512
# The paper's rates are those of a base model; smaller ones, trained for less long, need larger steps.
FINETUNING_RATES = {"base": None, "small": 1e-4, "tiny": 3e-4, "nano": 1e-3}


def available_tasks(options: ReproduceOptions) -> dict[Task, Splits]:
    """Return the tasks of `tasks_there` with their examples; raise `UserError` if one cannot be read."""
    return {task: load_splits(task, options.data if task.folder else None) for task in tasks_there(options)}


def probe(options: ReproduceOptions, workers: Workers) -> dict[str, Speed]:
    """Measure the speed of both models on the text, with as many runs side by side as there will be."""
    directory = options.output_dir / PROBE
    shutil.rmtree(directory, ignore_errors=True)  # of a call that did not come to its end
    steps = GPU_PROBE_STEPS if torch.accelerator.is_available() else PROBE_STEPS
    settings = ("--eval-samples", "8", "--warmup-steps", "4")
    runs = {f"{arch}-{i}": arch for i, arch in zip(range(max(2, workers.at_once)), itertools.cycle(ARCHITECTURES))}
    jobs = [pretraining(options, directory / name, arch, steps, settings) for name, arch in runs.items()]
    # What all need is made before a clock runs: the tokenised text, and a GPU's trial of kernels.
    alone = pretraining(options, directory / "alone", ARCHITECTURES[0], steps, (*settings, "--stop-after", "1"))
    if not workers.run([alone]) or not workers.run(jobs):
        shutil.rmtree(directory, ignore_errors=True)  # nothing but the log is left: other settings may take its place
        raise UserError(workers.failures[-1])
    metrics = {name: read_metrics(directory / name / METRICS_FILE) for name in runs}
    speed = {}
    for arch in ARCHITECTURES:
        of_arch = [name for name in runs if runs[name] == arch]
        seconds = [workers.seconds[f"{PROBE}/{name}"] for name in of_arch]
        speed[arch] = measured_speed([metrics[name] for name in of_arch], seconds)
    shutil.rmtree(directory)
    return speed


@dataclass(frozen=True)
class Choice:
    """The settings that a model is pre-trained with."""

    directory: str  # of its run, relative to that of the reproduction
    arguments: tuple[str, ...]  # for pretrain.py


def run_study(options: ReproduceOptions, plan: Plan, workers: Workers) -> dict[str, Choice]:
    """Run the beginning of every variant; return the best of each architecture's trials, by validation MLM loss.

    Raises:
        UserError: of one architecture none came to its end; or a run ended by something else than its settings, such as
            a full disk, and is to be repeated.
    """
    stop = ("--stop-after", str(plan.study_steps))
    tried = variants(options.preset)
    workers.run(
        [
            pretraining(
                options,
                variant_directory(options, variant),
                variant.arch,
                plan.pretraining_steps,
                (*variant.arguments, *stop),
                seconds=plan.seconds(variant.arch, plan.study_steps),
            )
            for variant in tried
        ]
    )
    if unfinished := [failure for failure in workers.failures if failure not in workers.diverged]:
        raise UserError(
            "the settings cannot be compared yet; the same command tries again, or --without study, in another "
            f"--output-dir, compares none: {'; '.join(unfinished[:3])}"
        )
    losses = {variant: studied_loss(options, plan, variant) for variant in tried if not variant.is_ablation}
    best = {}
    for arch in ARCHITECTURES:
        best[arch] = min((v for v in losses if v.arch == arch), key=lambda v: losses[v])
        if losses[best[arch]] == math.inf:
            raise UserError(f"no setting of {arch} came to its end; {workers.failures[-1]}")
    workers.failures.clear()  # a setting that diverges has lost; the report's table of the study names it
    return {arch: Choice(f"{STUDY}/{variant.name}", variant.arguments) for arch, variant in best.items()}


def studied_loss(options: ReproduceOptions, plan: Plan, variant: Variant) -> float:
    """Return the validation MLM loss at the end of the study; infinity for a run that did not come so far."""
    found = validations(variant_directory(options, variant), plan.study_steps)
    return found[-1]["eval_mlm_loss"] if found and found[-1]["step"] == plan.study_steps else math.inf


def variant_directory(options: ReproduceOptions, variant: Variant) -> Path:
    """Return where a variant's run is."""
    return options.output_dir / STUDY / variant.name


def seed_directory(options: ReproduceOptions, choice: Choice, seed: int) -> Path:
    """Return where the run of a seed of pre-training is; the first one is the study's."""
    return options.output_dir / (choice.directory if seed == 0 else f"{SEEDS}/{Path(choice.directory).name}-{seed}")


def pretraining(
    options: ReproduceOptions,
    directory: Path,
    arch: str,
    steps: int,
    settings: Sequence[str],
    text: str = DATA_DIRECTORY,
    seconds: float = 0.0,
) -> Job:
    """Return a run of pretrain.py in `directory`; those with the same `text` share what is made of the text."""
    files = ("--data", *options.text) if options.text else ()
    every = evaluate_every(steps)
    recipe = RECIPES[options.preset]
    fits = recipe.micro_batch_size * recipe.max_length // options.max_length  # as many characters at once
    micro = math.gcd(options.batch_size, 1 << max(fits, 1).bit_length() - 1)
    defaults = {"--warmup-steps": every, "--eval-samples": VALIDATION_SAMPLES, "--log-every": 1}
    words = [
        *("--arch", arch, "--preset", options.preset, *files),
        *("--output-dir", directory, "--data-dir", options.output_dir / text),
        *("--vocabulary-size", options.vocabulary_size, "--max-length", options.max_length),
        *("--batch-size", options.batch_size, "--micro-batch-size", micro),
        *("--steps", steps, "--eval-every", every, "--save-every", every, "--save-minutes", SAVE_MINUTES),
        *(word for name, value in defaults.items() if name not in settings for word in (name, value)),
        *settings,
    ]
    made = directory / MODEL_DIRECTORY
    if "--stop-after" in settings:
        made = directory / f"checkpoint-{settings[settings.index('--stop-after') + 1]}" / COMPLETE_FILE
    return Job(_name(options, directory), made, run_pretrain, tuple(map(str, words)), seconds)


def fine_tuning(
    options: ReproduceOptions,
    plan: Plan,
    task: Task,
    model: Path,
    directory: Path,
    settings: Sequence[str] = (),
    seconds: float = 0.0,
) -> Job:
    """Return a run of finetune.py in `directory`."""
    data = ("--data", options.data) if options.data and task.folder else ()
    cap, rate = plan.train_samples, FINETUNING_RATES[options.preset]
    own_rate = ("--learning-rate", rate) if rate else ()
    # A task of one's own has the name of its file.
    named = next((given for given in options.tasks if Path(given).stem == task.name), task.name)
    words = [
        *("--task", named, "--model", model, *data, "--output-dir", directory),
        *("--seeds", options.seeds, *own_rate),
        *("--train-samples", cap, "--dev-samples", cap, "--test-samples", max(cap, FEWEST_TEST_SAMPLES)),
        *("--keep-model", "best", "--save-minutes", SAVE_MINUTES, *settings),
        # A plan goes by the speed of pre-training.
        *(("--still-convolutions",) if RECIPES[options.preset].still_steps is None else ()),
    ]
    return Job(_name(options, directory), directory / SUMMARY_FILE, run_finetune, tuple(map(str, words)), seconds)


def _name(options: ReproduceOptions, directory: Path) -> str:
    return directory.relative_to(options.output_dir).as_posix()


def validations(directory: Path, until: int) -> list[dict[str, float]]:
    """Return the validations of a pre-training run up to a step, the first one before step 1; none of no run."""
    path = directory / METRICS_FILE
    entries = read_metrics(path) if path.exists() else []
    return [entry for entry in entries if "eval_mlm_loss" in entry and entry["step"] <= until]


def summaries(output_dir: Path) -> Iterator[tuple[str, str, dict[str, Any], Path]]:
    """Yield task, architecture, summary and its file, of every fine-tuning that is finished."""
    for path in sorted((output_dir / "finetuning").glob("*/*/summary.json")):
        yield path.parts[-3], path.parts[-2], read_json(path), path


def run_pretrain(*words: str) -> None:
    """Do what ``pretrain.py`` does with these words."""
    print(f"$ python pretrain.py {shlex.join(words)}", flush=True)
    pretrain(PretrainOptions.parse(words))


def run_finetune(*words: str) -> None:
    """Do what ``finetune.py`` does with these words."""
    print(f"$ python finetune.py {shlex.join(words)}", flush=True)
    print(describe(finetune(FinetuneOptions.parse(words))))
