"""What a seed and a whole run have come to, in memory and as files."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically
from glyphcrm.finetuning.metrics import Prediction
from glyphcrm.tasks import Example, TaggedExample
from glyphcrm.training.run_directory import read_json, write_json

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.jsonl"

Scores = dict[str, float]


@dataclass(frozen=True)
class SeedResult:
    """What one seed has come to."""

    task: str
    model: str  # the directory it started from
    seed: int
    options: dict[str, Any]  # those that decide the result
    metric: str  # the name of the score that models are selected by
    dev: Scores  # of the selected step
    test: Scores  # of that same model
    test_unseen: Scores | None  # without the test texts that also stand in train; None if there are none such
    entities: dict[str, Scores] | None  # of each type of entity, on test, for a tagging task
    best_step: int  # the selected one
    steps: int  # trained
    seconds: float  # of training, without evaluations and checkpoints
    parameters: int
    notes: list[str]  # what a reader of the scores must know
    versions: dict[str, str]  # of the software
    test_fonts: dict[str, Scores] = field(default_factory=dict)  # of that model reading other fonts, by name

    def save(self, directory: Path) -> None:
        """Write result.json, whole or not at all; it says that the seed is finished."""
        write_json(directory / RESULT_FILE, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """Return the result of a finished seed, or None.

        Raises:
            UserError: its result.json is damaged.
        """
        path = directory / RESULT_FILE
        try:
            found = cls(**read_json(path))
            for scores in (found.dev, found.test):  # what other seeds are compared by
                if not math.isfinite(scores[found.metric]):
                    raise ValueError(f"{found.metric} is {scores[found.metric]}")
            return found
        except FileNotFoundError:
            return None
        except (OSError, LookupError, ValueError, TypeError) as error:
            raise damaged(path, error) from error


@dataclass(frozen=True)
class Spread:
    """A score over the seeds: mean, sample standard deviation (None for one seed), and each seed's."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of at least one value."""
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, tuple(values))

    def __str__(self) -> str:
        return f"{self.mean:.2%}" if self.deviation is None else f"{self.mean:.2%} ± {self.deviation:.2%}"


@dataclass(frozen=True)
class Summary:
    """What all seeds of a run have come to."""

    task: str
    model: str  # the directory it started from
    metric: str  # the name of the score that models are selected by, a key of `dev` and `test`
    sizes: dict[str, int]  # examples in "train", "dev" and "test"; in "test_unseen" if there are such scores
    dev: dict[str, Spread]  # of each score
    test: dict[str, Spread]
    test_unseen: dict[str, Spread] | None  # as of a seed
    test_fonts: dict[str, dict[str, Spread]]  # as of a seed
    best_seed: int  # the one with the best dev score
    parameters: int
    seconds: float  # of training, all seeds together
    notes: tuple[str, ...]
    run_dir: str
    kept_model: str | None  # the directory of the best seed's model, if it was to be kept


def spreads(scores: Sequence[Scores]) -> dict[str, Spread]:
    """Return the spread of each score over the seeds."""
    return {name: Spread.of([seed[name] for seed in scores]) for name in scores[0]}


def best(results: Sequence[SeedResult]) -> SeedResult:
    """Return the result with the best dev score; among equals the first."""
    return max(results, key=lambda result: (result.dev[result.metric], -result.seed))


def describe(summary: Summary) -> str:
    """Return what a run has come to, in a few lines."""
    names = list(summary.test)
    lines = ["", "seed   dev " + summary.metric + "".join(f"   test {name}" for name in names)]
    dev = summary.dev[summary.metric].values
    for seed, value in enumerate(dev):
        cells = [f"{value:>{5 + len(summary.metric)}.2%}".rjust(4 + len(summary.metric))]
        cells += [f"{summary.test[name].values[seed]:.2%}".rjust(5 + len(name)) for name in names]
        lines.append(f"{seed:>4}   " + "   ".join(cells))
    if len(dev) > 1:
        lines += ["", "test, mean ± standard deviation over the seeds:"]
        lines += [f"  {name:<10} {spread}" for name, spread in summary.test.items()]
    if summary.test_unseen is not None:
        seen = summary.sizes["test"] - summary.sizes["test_unseen"]
        lines.append(f"without the {seen:,} of {summary.sizes['test']:,} test texts that also stand in train:")
        lines += [f"  {name:<10} {spread}" for name, spread in summary.test_unseen.items()]
    for font, scores in summary.test_fonts.items():
        lines.append(f"test in {font}:")
        lines += [f"  {name:<10} {spread}" for name, spread in scores.items()]
    lines += [f"note: {note}" for note in summary.notes]
    lines += ["", f"{summary.run_dir}: summary.json chart.png seed-*/predictions.jsonl"]
    if summary.kept_model:
        lines.append(f"use it: glyphcrm predict TEXT --model {shlex.quote(summary.kept_model)}")
    return "\n".join(lines)


def save_predictions(path: Path, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
    """Write an object a line: text ("pair" too), or characters; gold and predicted label, or tags."""
    rows: list[dict[str, Any]] = []
    for example, prediction in zip(examples, predictions, strict=True):
        if isinstance(example, TaggedExample):
            what: dict[str, Any] = {"characters": example.characters}
        else:
            what = {"text": example.text, **({} if example.pair is None else {"pair": example.pair})}
        rows.append({**what, "gold": example.answer, "predicted": prediction})
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def damaged(path: Path, error: Exception) -> UserError:
    """Return what is told of a file of a seed that cannot be read."""
    return UserError(f"{path}: damaged ({type(error).__name__}); delete {path.parent} and repeat the command")


def load_predictions(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a predictions.jsonl; raise `UserError` if it is damaged."""
    try:
        rows = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if not rows or not all({"gold", "predicted"} <= row.keys() for row in rows):
            raise ValueError("no predictions")
        return rows
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error
