"""What `pretrain.py` can be told, and the recipe that each preset starts from."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from transformers import HfArgumentParser

from glyphcrm.configuration import POSITION_INITIALIZERS, PRESETS
from glyphcrm.data.masking import MASK_PROBABILITY
from glyphcrm.errors import UserError
from glyphcrm.pretraining.ablations import ABLATIONS, FREE, PLAIN, UNTIED
from glyphcrm.vocabulary import DEFAULT_VOCABULARY_SIZE


@dataclass(frozen=True)
class Recipe:
    """How a preset is trained unless told otherwise; batch sizes are in sequences.

    HanGlyph has a rate of its own: with the encoder's 1e-3 the validation loss of `tiny` does not fall in
    50 steps, with 1e-4 it does. At the paper's 1e-4 one rate serves both. `projection_learning_rate` is of steps in
    whitened coordinates, measured on `tiny` (docs/convergence.md); None trains projections as the rest of HanGlyph.
    """

    steps: int
    batch_size: int
    micro_batch_size: int
    max_length: int
    learning_rate: float
    glyph_learning_rate: float
    projection_learning_rate: float | None
    warmup_steps: int
    dropout: float
    eval_every: int
    save_every: int
    log_every: int


RECIPES = {
    # The paper's recipe. It names no number of steps; a million is BERT's (arXiv:1810.04805, A.2).
    "base": Recipe(1_000_000, 256, 32, 512, 1e-4, 1e-4, None, 10_000, 0.1, 5_000, 1_000, 50),
    "small": Recipe(100_000, 128, 32, 256, 3e-4, 1e-4, None, 4_000, 0.1, 1_000, 500, 20),
    # About five minutes on two CPU cores with the demo corpus, of which it sees a third: no dropout. Sequences are
    # short, which teaches a small model several times faster than as many characters in long ones (README).
    "tiny": Recipe(180, 128, 128, 32, 1e-3, 1e-4, 3e-5, 20, 0.0, 36, 36, 1),
    "nano": Recipe(20, 8, 8, 64, 1e-3, 1e-4, 3e-5, 2, 0.1, 10, 10, 1),
}


@dataclass
class PretrainOptions:
    """Pre-train GlyphCRM, or a BERT to compare it with, on text: masked characters and next sentences."""

    arch: str = field(
        default="glyphcrm",
        metadata={
            "help": "glyphcrm, or bert: transformers' BERT of the same depth, width and vocabulary, "
            "on the same batches in the same order",
            "choices": ["glyphcrm", "bert"],
        },
    )
    ablation: str | None = field(
        default=None,
        metadata={
            "help": "change one part, to see what it does to learning; the run leaves curves but no model. "
            f"{UNTIED} (of --arch bert): the decoder is not the embedding table; {FREE}: in HanGlyph's place a table "
            f"of vectors that start where its do; {PLAIN}: HanGlyph's projections are trained as its other weights are",
            "choices": list(ABLATIONS),
        },
    )
    preset: str = field(default="tiny", metadata={"help": "size of the model and recipe", "choices": list(PRESETS)})
    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "files or globs of text: .txt (a paragraph a line, a blank line between documents), .jsonl, "
            ".parquet; .gz, .xz or .zst. Default: the demo corpus, People's Daily of January 1998"
        },
    )
    text_column: str = field(default="text", metadata={"help": "column or key with the text in .parquet and .jsonl"})
    exclude_characters: str | None = field(
        default=None,
        metadata={
            "help": "a file of characters; sentences with any of them are left out, so that a model never saw them"
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "where the run lives; default runs/PRESET"})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "where vocabulary, atlas and tokenised text are kept; runs over the same text may share it. "
            "Default: data/ in --output-dir"
        },
    )
    init: str | None = field(
        default=None,
        metadata={
            "help": "start from this GlyphCRM checkpoint (its size, vocabulary and atlas) instead of from scratch"
        },
    )
    position_initializer: str = field(
        default="normal",
        metadata={
            "help": "what the position embeddings of a new model, of either architecture, start from",
            "choices": list(POSITION_INITIALIZERS),
        },
    )
    font: list[str] = field(
        default_factory=list,
        metadata={"help": "fonts to draw with before the default one (for a collection: path.ttc#Family)"},
    )
    vocabulary_size: int = field(
        default=DEFAULT_VOCABULARY_SIZE, metadata={"help": "at most this many tokens can be predicted"}
    )
    input_only: bool = field(
        default=True,
        metadata={"help": "add atlas rows for the Han characters that the text lacks: read, though not predicted"},
    )
    steps: int | None = field(default=None, metadata={"help": "optimiser steps"})
    stop_after: int | None = field(
        default=None,
        metadata={"help": "stop here, with a checkpoint and the schedule of --steps; a repeated command goes further"},
    )
    batch_size: int | None = field(default=None, metadata={"help": "sequences a step, over all processes"})
    micro_batch_size: int | None = field(
        default=None, metadata={"help": "sequences a process computes at once; the rest is accumulated"}
    )
    max_length: int | None = field(default=None, metadata={"help": "tokens a sequence, at most"})
    learning_rate: float | None = field(default=None, metadata={"help": "peak, reached after the warm-up"})
    glyph_learning_rate: float | None = field(default=None, metadata={"help": "the same for HanGlyph's parameters"})
    projection_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "the same for HanGlyph's projections, of steps in whitened coordinates; without one they are "
            "trained as the rest of HanGlyph"
        },
    )
    warmup_steps: int | None = field(default=None, metadata={"help": "steps of linear warm-up before the decay"})
    weight_decay: float = field(
        default=0.01, metadata={"help": "AdamW's, not on biases, norms, and projections with a rate of their own"}
    )
    dropout: float | None = field(default=None, metadata={"help": "everywhere, attention too"})
    mask_probability: float = field(default=MASK_PROBABILITY, metadata={"help": "share of the characters to predict"})
    held_out: float = field(default=0.02, metadata={"help": "share of the documents kept for validation"})
    eval_every: int | None = field(default=None, metadata={"help": "steps between validations"})
    eval_samples: int = field(default=128, metadata={"help": "sequences a validation reads"})
    save_every: int | None = field(default=None, metadata={"help": "steps between checkpoints"})
    keep_checkpoints: int = field(default=2, metadata={"help": "checkpoints that are kept"})
    log_every: int | None = field(default=None, metadata={"help": "steps between lines of metrics.jsonl"})
    workers: int = field(default=1, metadata={"help": "data loading processes of each training process"})
    seed: int = field(default=0, metadata={"help": "of weights, data order, masking and dropout"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "less memory, a third more time"})
    attention: str = field(
        default="sdpa",
        metadata={"help": "attention implementation", "choices": ["sdpa", "eager", "flash_attention_2"]},
    )
    reuse_memory: bool = field(
        default=True,
        metadata={"help": "on a CPU: keep freed memory for the next step. Faster, but needs more at the peak"},
    )
    bf16: str = field(
        default="auto",
        metadata={"help": "bfloat16 autocast; auto: on a GPU that has it", "choices": ["auto", "on", "off"]},
    )

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir = str(Path("runs") / (self.preset if self.arch == "glyphcrm" else f"{self.preset}-bert"))
        if self.init is not None and self.arch != "glyphcrm":
            raise UserError("--init continues a GlyphCRM; a --arch bert starts from scratch, leave it out")
        if self.ablation is not None and self.init is not None:
            raise UserError("--ablation starts from scratch; leave --init out")
        if self.ablation is not None and self.arch != ABLATIONS[self.ablation]:
            raise UserError(f"--ablation {self.ablation} is of --arch {ABLATIONS[self.ablation]}")
        chosen = {f.name: getattr(self, f.name) for f in fields(Recipe)}
        self.recipe = replace(
            RECIPES[self.preset], **{name: value for name, value in chosen.items() if value is not None}
        )
        recipe = self.recipe
        if self.ablation == PLAIN and recipe.projection_learning_rate is None:
            raise UserError(
                f"--ablation {PLAIN} changes nothing at --preset {self.preset}, whose projections are trained as its "
                "other weights are; leave it out"
            )
        for name, value in {**asdict(recipe), "eval_samples": self.eval_samples}.items():
            if isinstance(value, int) and name != "warmup_steps" and value < 1:
                raise UserError(f"{name} is {value}; give 1 or more")
        for name, value, low, high in (
            ("stop_after", recipe.steps if self.stop_after is None else self.stop_after, 1, recipe.steps),
            ("keep_checkpoints", self.keep_checkpoints, 2, 1e6),  # the older one is deleted before the newer is whole
            ("warmup_steps", recipe.warmup_steps, 0, math.inf),
            ("max_length", recipe.max_length, 8, math.inf),
            ("workers", self.workers, 0, 1024),
            ("seed", self.seed, 0, 2**32 - 1),
            ("learning_rate", recipe.learning_rate, 0, math.inf),
            ("glyph_learning_rate", recipe.glyph_learning_rate, 0, math.inf),
            ("projection_learning_rate", recipe.projection_learning_rate or 0, 0, math.inf),
            ("weight_decay", self.weight_decay, 0, 1),
            ("dropout", recipe.dropout, 0, 0.99),
            ("mask_probability", self.mask_probability, 0.001, 1),
            ("held_out", self.held_out, 1e-9, 0.99),
        ):
            if not low <= value <= high:
                raise UserError(f"--{name.replace('_', '-')} is {value}; give {low:g} to {high:g}")
        if recipe.save_every % recipe.log_every:
            raise UserError(
                f"--save-every {recipe.save_every} is not a multiple of --log-every {recipe.log_every}; "
                "a run that continues would log other means"
            )

    @property
    def run_dir(self) -> Path:
        """Where the run lives."""
        return Path(str(self.output_dir))

    def identity(self) -> dict[str, object]:
        """Return the settings that decide the result of a run; those of a run that continues must be the same."""
        # Reading, logging and saving change no weights; what is read has a fingerprint of its own.
        irrelevant = {
            "output_dir",
            "data",
            "exclude_characters",
            "data_dir",
            "stop_after",
            "workers",
            "keep_checkpoints",
            "save_every",
            "log_every",
            "reuse_memory",
        }
        settings = {**asdict(self), **asdict(self.recipe)}
        return {name: value for name, value in settings.items() if name not in irrelevant}

    def accumulation(self, processes: int) -> int:
        """Return how many micro-batches each process adds up for a step.

        Raises `UserError` when the batch does not divide evenly.
        """
        batch, micro = self.recipe.batch_size, self.recipe.micro_batch_size
        if batch % (micro * processes):
            raise UserError(
                f"a batch of {batch} sequences cannot be made of {processes} processes x micro-batches of {micro}; "
                "choose --batch-size as a multiple of both"
            )
        return batch // (micro * processes)


def parse_options(arguments: Sequence[str] | None = None) -> PretrainOptions:
    """Read the command line (default: this process's)."""
    parser = HfArgumentParser(PretrainOptions, description=PretrainOptions.__doc__)  # type: ignore[arg-type]
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, *unknown = parser.parse_args_into_dataclasses(
        given, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown[-1]:
        parser.error(f"unknown: {' '.join(unknown[-1])}")
    return options
