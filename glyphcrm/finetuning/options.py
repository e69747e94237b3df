"""What `finetune.py` can be told, and what the task decides unless told otherwise."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from glyphcrm.errors import UserError
from glyphcrm.tasks import Kind, find_task
from glyphcrm.training.run_directory import MODEL_DIRECTORY

TRUNCATIONS = ("head", "head+tail")
MICRO_BATCH_TOKENS = 8192  # as many as a base model trains on in some 10 GB


# Of the learning rate. At the full rate a few hundred examples undo what pre-training has taught HanGlyph: `tiny` on
# 500 titles of TouTiao has an accuracy of 0.12 at the full rate, 0.20 at 0.07 of it, 0.24 at these shares, and 0.24
# with HanGlyph fixed (docs/convergence.md).
GLYPH_SHARE = 0.01
PROJECTION_SHARE = 0.03  # in whitened coordinates, as in pre-training


@dataclass(frozen=True)
class Recipe:
    """How a task is trained; batch sizes are in sequences, lengths in tokens with the special ones."""

    epochs: int
    batch_size: int
    learning_rate: float
    max_length: int


@dataclass
class FinetuneOptions:
    """Fine-tune a GlyphCRM or a BERT on a task with several seeds: select on dev, score on test."""

    task: str = field(metadata={"help": "name of a task, or a .toml file that describes one of your own"})
    model: str = field(metadata={"help": "directory with a saved GlyphCRM, or a transformers BERT and its tokenizer"})
    data: str | None = field(
        default=None,
        metadata={"help": "folder with the task folders, or the task's own; the demo tasks and .toml files need none"},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "where the run lives; default runs/finetune/TASK/NAME-OF-MODEL"}
    )
    seeds: int = field(default=3, metadata={"help": "runs; seeds 0, 1, 2, ..."})
    epochs: int | None = field(
        default=None, metadata={"help": "default: the task's, as for batch size, rate and length"}
    )
    batch_size: int | None = field(default=None, metadata={"help": "sequences a step, over all processes"})
    learning_rate: float | None = field(default=None, metadata={"help": "peak, reached after the warm-up"})
    one_rate: bool = field(
        default=False,
        metadata={
            "help": "train HanGlyph at --learning-rate, too, as the paper does; default: its convolutions at "
            f"{GLYPH_SHARE} of it, its projections at {PROJECTION_SHARE} in whitened coordinates"
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "tokens a sequence: longer texts are truncated, longer sentences to tag are cut up"},
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata={"help": "sequences a process computes at once; the rest is accumulated. Default: by their length"},
    )
    train_samples: int | None = field(
        default=None, metadata={"help": "at most this many examples, drawn once for all models and seeds"}
    )
    dev_samples: int | None = field(default=None, metadata={"help": "the same for dev"})
    test_samples: int | None = field(default=None, metadata={"help": "the same for test"})
    truncation: str = field(
        default="head",
        metadata={"help": "what is kept of a single text that is too long", "choices": list(TRUNCATIONS)},
    )
    patience: int = field(default=2, metadata={"help": "evaluations without a better dev score before it stops"})
    evaluations_per_epoch: int = field(default=1, metadata={"help": "how often dev is scored, and a checkpoint saved"})
    warmup: float = field(default=0.1, metadata={"help": "share of the steps with a rising learning rate"})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's, not on biases and norms"})
    dropout: float | None = field(default=None, metadata={"help": "everywhere, attention too; default: the model's"})
    keep_model: str = field(
        default="none",
        metadata={
            "help": "best: keep the fine-tuned model of the seed with the best dev score",
            "choices": ["none", "best"],
        },
    )
    workers: int = field(default=0, metadata={"help": "data loading processes of each training process"})
    attention: str = field(
        default="sdpa",
        metadata={"help": "attention implementation", "choices": ["sdpa", "eager", "flash_attention_2"]},
    )
    bf16: str = field(
        default="auto",
        metadata={"help": "bfloat16 autocast; auto: on a GPU that has it", "choices": ["auto", "on", "off"]},
    )

    def __post_init__(self) -> None:
        self.definition = find_task(self.task)
        task = self.definition
        if self.output_dir is None:
            model = Path(self.model).resolve()
            name = model.parent.name if model.name == MODEL_DIRECTORY else model.name
            self.output_dir = str(Path("runs") / "finetune" / task.name / name)
        self.recipe = Recipe(
            epochs=task.epochs if self.epochs is None else self.epochs,
            batch_size=task.batch_size if self.batch_size is None else self.batch_size,
            learning_rate=task.learning_rate if self.learning_rate is None else self.learning_rate,
            max_length=task.max_length if self.max_length is None else self.max_length,
        )
        unset = {"micro_batch_size", "train_samples", "dev_samples", "test_samples", "dropout"}
        for name, value, low, high in (
            ("seeds", self.seeds, 1, 10_000),
            ("epochs", self.recipe.epochs, 1, math.inf),
            ("batch_size", self.recipe.batch_size, 1, math.inf),
            ("learning_rate", self.recipe.learning_rate, 0, math.inf),
            ("max_length", self.recipe.max_length, 8, math.inf),
            ("micro_batch_size", self.micro_batch_size, 1, math.inf),
            ("train_samples", self.train_samples, 2, math.inf),
            ("dev_samples", self.dev_samples, 1, math.inf),
            ("test_samples", self.test_samples, 1, math.inf),
            ("patience", self.patience, 1, math.inf),
            ("evaluations_per_epoch", self.evaluations_per_epoch, 1, math.inf),
            ("warmup", self.warmup, 0, 1),
            ("weight_decay", self.weight_decay, 0, 1),
            ("dropout", self.dropout, 0, 0.99),
            ("workers", self.workers, 0, 1024),
        ):
            if value is None and name in unset:
                continue
            if value is None or not low <= value <= high:
                raise UserError(f"--{name.replace('_', '-')} is {value}; give {low:g} to {high:g}")
        if self.truncation == "head+tail" and task.kind is not Kind.SENTENCE:
            raise UserError(f"--truncation head+tail is for single texts; {task.name} is a {task.kind} task")

    def hanglyph_rates(self) -> dict[str, float | None]:
        """Return the rates of HanGlyph and of its projections for `PartwiseTrainer`."""
        rate = self.recipe.learning_rate
        if self.one_rate:
            return {"glyph_learning_rate": rate, "projection_learning_rate": None}
        return {"glyph_learning_rate": GLYPH_SHARE * rate, "projection_learning_rate": PROJECTION_SHARE * rate}

    @property
    def run_dir(self) -> Path:
        """Where the run lives."""
        return Path(str(self.output_dir))

    def identity(self) -> dict[str, object]:
        """Return the settings that decide the result of a seed; those of a run that continues must be the same."""
        # Where things lie and how many seeds there are changes no seed; contents are told by their fingerprints.
        irrelevant = {"task", "model", "data", "output_dir", "seeds", "workers"}
        task = {"kind": self.definition.kind, "metric": self.definition.metric}
        settings = {**task, **asdict(self), **asdict(self.recipe)}
        return {name: value for name, value in settings.items() if name not in irrelevant}

    def micro_batch(self, processes: int) -> int:
        """Return how many sequences each of `processes` computes at once.

        Raises:
            UserError: the batch does not divide evenly.
        """
        batch = self.recipe.batch_size
        if self.micro_batch_size is None and batch % processes == 0:
            share = batch // processes
            fitting = max(1, MICRO_BATCH_TOKENS // self.recipe.max_length)
            return max(micro for micro in range(1, min(share, fitting) + 1) if share % micro == 0)
        micro = self.micro_batch_size or 1
        if batch % (micro * processes):
            raise UserError(
                f"a batch of {batch} sequences cannot be made of {processes} processes x micro-batches of {micro}; "
                "choose --batch-size as a multiple of both"
            )
        return micro


def parse_options(arguments: Sequence[str] | None = None) -> FinetuneOptions:
    """Read the command line (default: this process's)."""
    parser = HfArgumentParser(FinetuneOptions, description=FinetuneOptions.__doc__)  # type: ignore[arg-type]
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, *unknown = parser.parse_args_into_dataclasses(
        given, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown[-1]:
        parser.error(f"unknown: {' '.join(unknown[-1])}")
    return options
