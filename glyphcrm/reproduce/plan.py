"""How long each part of a reproduction may be, from the time given and this machine's speed."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass

from glyphcrm.reproduce.options import FEWEST_STEPS, ReproduceOptions
from glyphcrm.reproduce.substitutions import whole_text
from glyphcrm.tasks import Splits, Task

# Shares of the time; what is left over is for reading, scoring and charts.
PRETRAINING, FINETUNING, HELD_OUT = 0.57, 0.27, 0.1  # pre-training with the study
# Of the steps of pre-training, the study sees this share. The schedule is that of the whole, since a short one
# of its own prefers rates that are too high for a long one. Half this share chose wrongly at `tiny`: what starts faster
# is overtaken where the curves bend down (docs/convergence.md).
STUDIED = 0.3
EVALUATIONS = 20  # of pre-training; after six of them the study ends
PROBE_STEPS = 8
FEWEST_SAMPLES = 32
FEWEST_TEST_SAMPLES = 1000  # or all: reading is cheap, and a score of fewer says little


@dataclass(frozen=True)
class Speed:
    """What one model needs on this machine, in seconds."""

    step: float  # of pre-training
    token: float  # of training, at the length of pre-training


@dataclass(frozen=True)
class Plan:
    """Steps and samples; the same for both models."""

    pretraining_steps: int
    study_steps: int
    held_out_steps: int
    train_samples: int
    speed: dict[str, Speed]


def measured_speed(metrics: list[dict[str, float]]) -> Speed:
    """Return the median speed of a probe, from its metrics.jsonl; the first steps do not count."""
    steps = [entry for entry in metrics if "mlm_loss" in entry][2:]
    seconds = [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(steps)]
    return Speed(
        step=statistics.median(seconds), token=statistics.median(1 / entry["tokens_per_second"] for entry in steps)
    )


def evaluate_every(steps: int) -> int:
    """Return the steps between validations of a pre-training run."""
    return max(1, steps // EVALUATIONS)


def make_plan(options: ReproduceOptions, speed: dict[str, Speed], tasks: dict[Task, Splits], studied: int) -> Plan:
    """Fit steps and samples into `options.hours`, with so many variants of each architecture `studied`, all told."""
    time = options.hours * 3600
    both = sum(s.step for s in speed.values())
    # The best variant of each goes on to the end; the others stop where the study ends.
    a_step = both * (1 + STUDIED * (studied - 1))
    seconds_per_token = sum(s.token for s in speed.values()) * options.seeds

    def seconds(samples: int) -> float:
        return sum(_tokens(task, splits, samples) for task, splits in tasks.items()) * seconds_per_token

    most = max((len(splits.train) for splits in tasks.values()), default=FEWEST_SAMPLES)
    samples = next((n for n in _falling(most) if seconds(n) <= FINETUNING * time), FEWEST_SAMPLES)
    steps = options.pretraining_steps or max(FEWEST_STEPS, int(PRETRAINING * time / a_step))
    return Plan(
        pretraining_steps=steps,
        study_steps=round(STUDIED * EVALUATIONS) * evaluate_every(steps),
        held_out_steps=max(FEWEST_STEPS, int(HELD_OUT * time / both)),
        train_samples=options.train_samples or samples,
        speed=speed,
    )


def _falling(most: int) -> list[int]:
    """Return round numbers from `most` down."""
    steps = sorted({most, *(int(m * 10**e) for m in (1, 1.5, 2, 3, 5, 7) for e in range(1, 7))}, reverse=True)
    return [n for n in steps if FEWEST_SAMPLES <= n <= most]


def _tokens(task: Task, splits: Splits, samples: int) -> float:
    """Return how many tokens fine-tuning reads in one run: its epochs, with dev after each and test once."""
    lengths = [len(whole_text(example)) for example in splits.train[:200]]
    length = min(task.max_length, statistics.mean(lengths) + 3)
    train = min(samples, len(splits.train))
    dev, test = min(samples, len(splits.dev)), min(max(samples, FEWEST_TEST_SAMPLES), len(splits.test))
    return length * (task.epochs * (train + dev / 3) + test / 3)  # without gradients, a third of the work
