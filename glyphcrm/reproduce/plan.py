"""How long each part of a reproduction may be, from the time given and this machine's speed."""

from __future__ import annotations

import bisect
import heapq
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from glyphcrm.reproduce.options import FEWEST_STEPS, ReproduceOptions
from glyphcrm.reproduce.substitutions import whole_text
from glyphcrm.tasks import Kind, Splits, Task

# Shares of the time: pre-training with the study, all fine-tuning, pre-training of the later stages; what is left over
# is for reading, scoring and charts.
PRETRAINING, FINETUNING, LATER = 0.57, 0.27, 0.1
# Of the steps of pre-training, the study sees this share. The schedule is that of the whole, since a short one
# of its own prefers rates that are too high for a long one. Half this share chose wrongly at `tiny`: what starts faster
# is overtaken where the curves bend down (docs/convergence.md).
STUDIED = 0.3
EVALUATIONS = 20  # of pre-training; after six of them the study ends
PROBE_STEPS = 8
GPU_PROBE_STEPS = 40  # long enough to be side by side, though no two begin at once
FEWEST_SAMPLES = 32
FEWEST_TEST_SAMPLES = 1000  # or all: reading is cheap, and a score of fewer says little
MOST_SEEDS = 3  # of pre-training
READINGS = 8  # of a test set, rewritten, by one seed of the two models
MOST_STEPS = 10**8


@dataclass(frozen=True)
class Speed:
    """What one model needs on this machine, in seconds."""

    step: float  # of pre-training
    token: float  # of training, at the length of pre-training
    start: float  # until a run has begun, with its checkpoints


@dataclass(frozen=True)
class Plan:
    """Steps, samples and seeds; the same for both models."""

    pretraining_steps: int
    pretraining_seeds: int
    study_steps: int
    held_out_steps: int
    train_samples: int
    side_by_side: int
    speed: dict[str, Speed]

    def seconds(self, arch: str, steps: int) -> float:
        """Return how long a run of pre-training takes."""
        return self.speed[arch].start + steps * self.speed[arch].step

    def seconds_of_finetuning(self, arch: str, task: Task, splits: Splits, seeds: int) -> float:
        """Return how long a run of fine-tuning takes, with the test set rewritten."""
        return self.speed[arch].start + _tokens(task, splits, self.train_samples, seeds) * self.speed[arch].token


def measured_speed(metrics: Sequence[list[dict[str, float]]], seconds: Sequence[float]) -> Speed:
    """Return the median speed of some probes, from their metrics.jsonl, and how long each took in all.

    The first steps do not count.
    """
    runs = [[entry for entry in entries if "mlm_loss" in entry] for entries in metrics]
    times = [b["seconds"] - a["seconds"] for steps in runs for a, b in itertools.pairwise(steps[2:])]
    idle = [whole - steps[-1]["seconds"] for whole, steps in zip(seconds, runs, strict=True)]
    return Speed(
        step=statistics.median(times),
        token=statistics.median(1 / entry["tokens_per_second"] for steps in runs for entry in steps[2:]),
        start=max(0.0, statistics.median(idle)),
    )


def makespan(seconds: Iterable[float], at_once: int) -> float:
    """Return how long work takes when it is done `at_once` side by side, the longest first."""
    ends = [0.0] * at_once  # a heap
    for some in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + some)
    return max(ends)


def evaluate_every(steps: int) -> int:
    """Return the steps between validations of a pre-training run."""
    return max(1, steps // EVALUATIONS)


def make_plan(
    options: ReproduceOptions, speed: dict[str, Speed], tasks: dict[Task, Splits], studied: Sequence[str], at_once: int
) -> Plan:
    """Fit steps and samples into `options.hours`, with variants of these architectures `studied`, `at_once` runs."""
    time = options.hours * 3600
    seeds = max(1, min(MOST_SEEDS, at_once // len(speed)))

    def of_pretraining(steps: int) -> float:
        """Return the seconds of the study, and of the best of each architecture that go on, with other seeds beside."""
        study = _study_steps(steps)
        rest = [steps - study * bool(studied), *[steps] * (seeds - 1)]
        begins = [speed[arch].start + study * speed[arch].step for arch in studied]
        return makespan(begins, at_once) + makespan(
            [s.start + n * s.step for s in speed.values() for n in rest], at_once
        )

    # The pairs of models that held_out and other_fonts pre-train, and then fine-tune on a task of sentences.
    later = [list(speed), *([["glyphcrm"] * 2] if options.train_font and options.other_font else [])]

    def of_later(steps: int) -> float:
        return sum(makespan([speed[arch].start + steps * speed[arch].step for arch in pair], at_once) for pair in later)

    def of_finetuning(samples: int) -> float:
        tokens = {task: _tokens(task, splits, samples, options.seeds) for task, splits in tasks.items()}
        asked = task_of_sentences(tasks)
        stages = [[(arch, task) for arch in speed for task in tasks]]
        stages += [[(arch, asked) for arch in pair] for pair in later if asked is not None]
        return sum(makespan([speed[a].start + tokens[t] * speed[a].token for a, t in jobs], at_once) for jobs in stages)

    most = max((len(splits.train) for splits in tasks.values()), default=FEWEST_SAMPLES)
    samples = next((n for n in _falling(most) if of_finetuning(n) <= FINETUNING * time), FEWEST_SAMPLES)
    steps = options.pretraining_steps or _most_steps(of_pretraining, PRETRAINING * time)
    held_out = _most_steps(of_later, LATER * time)
    if options.pretraining_steps:  # it is not the time that decides
        held_out = max(FEWEST_STEPS, round(LATER / PRETRAINING * steps))
    return Plan(
        pretraining_steps=steps,
        pretraining_seeds=seeds,
        study_steps=_study_steps(steps),
        held_out_steps=held_out,
        train_samples=options.train_samples or samples,
        side_by_side=at_once,
        speed=speed,
    )


def task_of_sentences(tasks: Iterable[Task]) -> Task | None:
    """Return the task to ask about single characters: on the words of reviews and titles one matters most."""
    return next((task for task in tasks if task.kind is Kind.SENTENCE), None)


def _study_steps(steps: int) -> int:
    return min(steps, round(STUDIED * EVALUATIONS) * evaluate_every(steps))


def _most_steps(seconds: Callable[[int], float], time: float) -> int:
    """Return the most steps that fit into a time."""
    return max(FEWEST_STEPS, bisect.bisect_right(range(MOST_STEPS), time, key=seconds) - 1)


def _falling(most: int) -> list[int]:
    """Return round numbers from `most` down."""
    steps = sorted({most, *(int(m * 10**e) for m in (1, 1.5, 2, 3, 5, 7) for e in range(1, 7))}, reverse=True)
    return [n for n in steps if FEWEST_SAMPLES <= n <= most]


def _tokens(task: Task, splits: Splits, samples: int, seeds: int) -> float:
    """Return how many tokens one model trains on, and a third of those that it reads, which are without gradients.

    Each seed reads dev after each epoch, and test; one of them test rewritten, too.
    """
    lengths = [len(whole_text(example)) for example in splits.train[:200]]
    length = min(task.max_length, statistics.mean(lengths) + 3)
    train = min(samples, len(splits.train))
    dev, test = min(samples, len(splits.dev)), min(max(samples, FEWEST_TEST_SAMPLES), len(splits.test))
    read = seeds * (task.epochs * dev + test) + READINGS * test
    return length * (seeds * task.epochs * train + read / 3)
