"""What `glyphcrm finetune` can be told, and what the task decides unless told otherwise."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path

from glyphcrm.errors import UserError
from glyphcrm.tasks import Kind, find_task
from glyphcrm.training.options import (
    ATTENTIONS,
    BF16,
    REPORT_TO,
    CommandLineOptions,
    accumulation,
    check_ranges,
    option,
)
from glyphcrm.training.run_directory import MODEL_DIRECTORY

TRUNCATIONS = ("head", "head+tail")
SHORTEST = 8  # tokens that a sequence may have at most
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
class FinetuneOptions(CommandLineOptions):
    """Fine-tune a GlyphCRM or a BERT on a task with several seeds: select on dev, score on test."""

    task: str = option(MISSING, "name of a task, or a .toml file that describes one of your own")
    model: str = option(MISSING, "directory with a saved GlyphCRM, or a transformers BERT and its tokenizer")
    data: str | None = option(
        None, "folder with the task folders, or the task's own; the demo tasks and .toml files need none"
    )
    output_dir: str | None = option(None, "where the run lives; default runs/finetune/TASK/NAME-OF-MODEL")
    seeds: int = option(3, "runs; seeds 0, 1, 2, ...")
    epochs: int | None = option(
        None, "passes over the training examples; default: the task's, as of batch size, rate and length"
    )
    batch_size: int | None = option(None, "sequences a step, over all processes")
    learning_rate: float | None = option(None, "peak, reached after the warm-up")
    one_rate: bool = option(
        False,
        "train HanGlyph at --learning-rate, too, as the paper does; without it, its convolutions at "
        f"{GLYPH_SHARE} of it, its projections at {PROJECTION_SHARE} in whitened coordinates",
    )
    still_convolutions: bool = option(
        False,
        "leave HanGlyph's convolutions as they are; what they make of each picture is computed once, and a step costs "
        "what BERT's does",
    )
    max_length: int | None = option(
        None, "tokens a sequence: longer texts are truncated, longer sentences to tag are cut up"
    )
    micro_batch_size: int | None = option(
        None, "sequences a process computes at once; the rest is accumulated. Default: by their length"
    )
    train_samples: int | None = option(None, "at most this many examples, drawn once for all models and seeds")
    dev_samples: int | None = option(None, "the same for dev")
    test_samples: int | None = option(None, "the same for test")
    truncation: str = option("head", "what is kept of a single text that is too long", TRUNCATIONS)
    save_minutes: float | None = option(None, "save between evaluations, too, if the last checkpoint is as old as this")
    patience: int = option(2, "evaluations without a better dev score before it stops")
    evaluations_per_epoch: int = option(1, "how often dev is scored, and a checkpoint saved")
    warmup: float = option(0.1, "share of the steps with a rising learning rate")
    weight_decay: float = option(0.01, "AdamW's, not on biases and norms")
    dropout: float | None = option(None, "everywhere, attention too; default: the model's")
    train_font: list[str] = option(
        [],
        "further fonts: at each step one of them, or the model's own, is drawn at random for each character that they "
        'have; "FILE.ttc#NAME" for a face of a collection. Dev, test and the kept model read the model\'s own',
    )
    test_font: list[str] = option([], "fonts in which the test set is scored as well, each by itself")
    keep_model: str = option(
        "none", "best: keep the fine-tuned model of the seed with the best dev score", ("none", "best")
    )
    workers: int = option(0, "data loading processes of each training process")
    report_to: list[str] = option(["tensorboard"], REPORT_TO)
    attention: str = option("sdpa", "attention implementation", ATTENTIONS)
    bf16: str = option("auto", "bfloat16 autocast; auto: on a GPU that has it", BF16)

    def __post_init__(self) -> None:
        self.definition = find_task(self.task)
        task = self.definition
        if self.output_dir is None:
            model = Path(self.model).resolve()
            name = model.parent.name if model.name == MODEL_DIRECTORY else model.name
            self.output_dir = str(Path("runs") / "finetune" / task.name / name)
        self.recipe = self.over(Recipe(task.epochs, task.batch_size, task.learning_rate, task.max_length))
        sizes = ("batch_size", "micro_batch_size", "dev_samples", "test_samples")
        check_ranges(
            {**asdict(self), **asdict(self.recipe)},
            {
                (1, 10_000): ("seeds", "epochs", "evaluations_per_epoch"),
                (1, math.inf): (*sizes, "patience"),
                (2, math.inf): ("train_samples",),
                (SHORTEST, math.inf): ("max_length",),
                (0, math.inf): ("learning_rate", "save_minutes"),
                (0, 1): ("warmup", "weight_decay"),
                (0, 0.99): ("dropout",),
                (0, 1024): ("workers",),
            },
        )
        if self.truncation == "head+tail" and task.kind is not Kind.SENTENCE:
            raise UserError(f"--truncation head+tail is for single texts; {task.name} is a {task.kind} task")

    def hanglyph_rates(self) -> tuple[float, float | None]:
        """Return the rates of HanGlyph and of its projections, as `OptimizerSettings` takes them."""
        rate = self.recipe.learning_rate
        if self.one_rate:
            return rate, None
        return GLYPH_SHARE * rate, PROJECTION_SHARE * rate

    def identity(self) -> dict[str, object]:
        """Return the settings that decide the result of a seed; those of a run that continues must be the same."""
        # Where things lie and how many seeds there are changes no seed; contents are told by their fingerprints.
        irrelevant = {"task", "model", "data", "output_dir", "seeds", "save_minutes", "workers", "report_to"}
        task = {"kind": self.definition.kind, "metric": self.definition.metric}
        settings = {**task, **asdict(self), **asdict(self.recipe)}
        return {name: value for name, value in settings.items() if name not in irrelevant}

    def micro_batch(self, processes: int) -> int:
        """Return how many sequences each of `processes` computes at once; raise as `accumulation`."""
        batch = self.recipe.batch_size
        if self.micro_batch_size is None and batch % processes == 0:
            share = batch // processes
            fitting = max(1, MICRO_BATCH_TOKENS // self.recipe.max_length)
            return max(micro for micro in range(1, min(share, fitting) + 1) if share % micro == 0)
        micro = self.micro_batch_size or 1
        accumulation(batch, micro, processes)
        return micro
