"""What a seed and a whole run have come to, in memory and as files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically
from glyphcrm.finetuning.metrics import Prediction
from glyphcrm.tasks import Example, TaggedExample, TextExample
from glyphcrm.training.run_directory import read_json, write_json

RESULT_FILE = "result.json"
SUMMARY_FILE = "summary.json"
PREDICTIONS_FILE = "predictions.jsonl"
CHART_FILE = "chart.png"

Scores = dict[str, float]


@dataclass(frozen=True)
class SeedResult:
    """What one seed has come to.

    Attributes:
        task: its name.
        model: the directory it started from.
        seed: of head, order and dropout.
        options: those that decide the result.
        metric: the name of the score that models are selected by.
        dev: scores of the selected step.
        test: scores of that same model.
        test_unseen: the same without the test texts that also stand in train; None if there are none such.
        entities: for a tagging task, the scores of each type of entity on test.
        best_step: the selected one.
        steps: trained.
        seconds: of training, without evaluations and checkpoints.
        parameters: of the model.
        notes: what a reader of the scores must know.
        versions: of the software.
    """

    task: str
    model: str
    seed: int
    options: dict[str, Any]
    metric: str
    dev: Scores
    test: Scores
    test_unseen: Scores | None
    entities: dict[str, Scores] | None
    best_step: int
    steps: int
    seconds: float
    parameters: int
    notes: list[str]
    versions: dict[str, str]

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
            return cls(**read_json(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: damaged ({type(error).__name__}); delete {directory} and repeat the command"
            ) from error


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
    """What all seeds of a run have come to.

    Attributes:
        task: its name.
        model: the directory it started from.
        metric: the name of the score that models are selected by, a key of `dev` and `test`.
        sizes: examples in "train", "dev" and "test"; in "test_unseen" if there are such scores.
        dev: each score's spread over the seeds.
        test: likewise.
        test_unseen: likewise, without the test texts that also stand in train; None if there are none such.
        best_seed: the one with the best dev score.
        parameters: of the model.
        seconds: of training, all seeds together.
        notes: what a reader of the scores must know.
        run_dir: where the files are.
        kept_model: the directory of the best seed's model, if it was to be kept.
    """

    task: str
    model: str
    metric: str
    sizes: dict[str, int]
    dev: dict[str, Spread]
    test: dict[str, Spread]
    test_unseen: dict[str, Spread] | None
    best_seed: int
    parameters: int
    seconds: float
    notes: tuple[str, ...]
    run_dir: str
    kept_model: str | None

    def save(self) -> None:
        """Write summary.json."""
        write_json(Path(self.run_dir) / SUMMARY_FILE, asdict(self))


def spreads(scores: Sequence[Scores]) -> dict[str, Spread]:
    """Return the spread of each score over the seeds."""
    return {name: Spread.of([seed[name] for seed in scores]) for name in scores[0]}


def best(results: Sequence[SeedResult]) -> SeedResult:
    """Return the result with the best dev score; among equals the first."""
    return max(results, key=lambda result: (result.dev[result.metric], -result.seed))


def save_predictions(path: Path, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
    """Write an object a line: text ("pair" too), or characters; gold and predicted label, or tags."""
    lines = [
        json.dumps(_with_prediction(example, prediction), ensure_ascii=False)
        for example, prediction in zip(examples, predictions, strict=True)
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def load_predictions(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a predictions.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _with_prediction(example: Example, prediction: Prediction) -> dict[str, Any]:
    if isinstance(example, TaggedExample):
        return {"characters": example.characters, "gold": example.tags, "predicted": prediction}
    assert isinstance(example, TextExample)
    pair = {} if example.pair is None else {"pair": example.pair}
    return {"text": example.text, **pair, "gold": example.label, "predicted": prediction}
