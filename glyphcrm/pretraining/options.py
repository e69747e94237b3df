"""What `glyphcrm pretrain` can be told, and the recipe that each preset starts from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from glyphcrm.config_values import POSITION_INITIALIZERS, PRESETS, SIZES
from glyphcrm.data.masking import MASK_PROBABILITY
from glyphcrm.errors import UserError
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.training.options import (
    ATTENTIONS,
    BF16,
    REPORT_TO,
    SEEDS,
    CommandLineOptions,
    WithoutEffect,
    check_ranges,
    option,
)
from glyphcrm.vocabulary import DEFAULT_VOCABULARY_SIZE

TEXT_COLUMN = "text"
UNTIED, FREE, PLAIN = "untied-decoder", "free-glyphs", "plain-projections"
ABLATIONS = {UNTIED: "bert", FREE: "glyphcrm", PLAIN: "glyphcrm"}  # and the architecture that each changes
# They change no weights, or what they name has a fingerprint of its own, or (channels) is among the sizes.
IRRELEVANT = (
    *("output_dir", "data", "exclude_characters", "glyph_channels", "data_dir", "stop_after", "save_minutes"),
    *("workers", "keep_checkpoints", "save_every", "log_every", "reuse_memory", "cuda_graph", "report_to"),
)


CUDA_GRAPH = ("auto", "off")
OF_PICTURES = ("still_steps", "character_scaling", "tied_decoder")  # models that read none are trained without


@dataclass(frozen=True)
class Recipe:
    """How a preset is trained unless told otherwise; batch sizes are in sequences.

    HanGlyph has a rate of its own: with the encoder's 1e-3 the validation loss of `tiny` does not fall in
    50 steps, with 1e-4 it does. At the paper's 1e-4 one rate serves both. `projection_learning_rate` is of steps in
    whitened coordinates, measured on `tiny` (docs/convergence.md); None trains projections as the rest of HanGlyph.
    `still_steps` and `character_scaling` are measured there, too: with convolutions that never move (None) `tiny`
    lost next to nothing when it had 288 features, and saves most of the time; scaled, and with a tied decoder, it
    learns sooner. At `small` and `base` none of these was looked at.
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
    still_steps: int | None
    character_scaling: float
    tied_decoder: bool

    @property
    def steps_of_still_convolutions(self) -> int:
        """In so many first steps HanGlyph's convolutions stand still."""
        return self.steps if self.still_steps is None else self.still_steps


RECIPES = {
    # The paper's recipe. It names no number of steps; a million is BERT's (arXiv:1810.04805, A.2).
    "base": Recipe(1_000_000, 256, 32, 512, 1e-4, 1e-4, None, 10_000, 0.1, 5_000, 1_000, 50, 0, 0.0, False),
    "small": Recipe(100_000, 128, 32, 256, 3e-4, 1e-4, None, 4_000, 0.1, 1_000, 500, 20, 0, 0.0, False),
    # Some minutes on two CPU cores with the demo corpus, which it sees once: no dropout. Sequences are
    # short, which teaches a small model several times faster than as many characters in long ones.
    "tiny": Recipe(600, 128, 128, 32, 1e-3, 1e-4, 3e-5, 60, 0.0, 60, 60, 1, None, 0.5, True),
    "nano": Recipe(20, 8, 8, 64, 1e-3, 1e-4, 3e-5, 2, 0.1, 10, 10, 1, 0, 0.0, False),
}


@dataclass
class TextOptions(CommandLineOptions):
    """What decides about the text of a run, its vocabulary and its atlas."""

    preset: str = option("tiny", "size of the model and recipe", tuple(PRESETS))
    data: list[str] = option(
        [],
        "files, globs or URLs (s3://, hf://, https://, ...) of text: .txt (a paragraph a line, a blank line between "
        "documents), .jsonl, .parquet; .gz, .xz or .zst; or datasets:NAME[:CONFIG[:SPLIT]]. Default: what --data-dir "
        "was made of, or else the demo corpus, People's Daily of January 1998",
    )
    text_column: str = option(TEXT_COLUMN, "column or key with the text in .parquet, .jsonl and data sets")
    exclude_characters: str | None = option(
        None, "a file of characters; sentences with any of them are left out, so that a model never saw them"
    )
    max_length: int | None = option(None, "tokens a sequence, at most; default: that of --preset")
    vocabulary_size: int = option(
        DEFAULT_VOCABULARY_SIZE, "at most this many tokens can be predicted (with --init those of its vocabulary are)"
    )
    font: list[str] = option([], "fonts to draw with before the default one (for a collection: path.ttc#NAME)")
    input_only: bool = option(
        True, "add rows to a new atlas for what else the fonts draw and the text lacks: read, though not predicted"
    )
    data_dir: str | None = option(
        None,
        "where vocabulary, atlas and tokenised text are kept; runs over the same text may share it. "
        "Default: data/ in --output-dir",
    )

    def check_init(self, init: str | None) -> None:
        """Raise `UserError` for fonts to draw with where the model to start from has its pictures."""
        if init is not None and self.font:
            raise UserError("--font draws a new atlas; the model of --init has its own, leave one of them out")


@dataclass
class PretrainOptions(TextOptions):
    """Pre-train GlyphCRM, or a BERT to compare it with, on text: masked characters and next sentences.

    Numbers without a default are those of --preset.
    """

    arch: str = option(
        "glyphcrm",
        "glyphcrm, or bert: transformers' BERT of the same depth, width and vocabulary, "
        "on the same batches in the same order",
        ("glyphcrm", "bert"),
    )
    ablation: str | None = option(
        None,
        "change one part, to see what it does to learning; the run leaves curves but no model. "
        f"{UNTIED} (of --arch bert): the decoder is not the embedding table; {FREE}: in HanGlyph's place a table "
        f"of vectors that start where its do; {PLAIN}: HanGlyph's projections are trained as its other weights are",
        tuple(ABLATIONS),
    )
    output_dir: str | None = option(None, "where the run lives; default runs/PRESET")
    init: str | None = option(
        None, "start from this GlyphCRM checkpoint (its size, vocabulary and atlas) instead of from scratch"
    )
    glyph_channels: int | None = option(
        None,
        "channels of HanGlyph's second block in a new model; nine times as many numbers make a character's vector",
    )
    position_initializer: str = option(
        "normal",
        "what the position embeddings of a new model, of either architecture, start from",
        tuple(POSITION_INITIALIZERS),
    )
    train_font: list[str] = option(
        [],
        "further fonts: at each step one of them, or the atlas', is drawn at random for each character that they have. "
        "Validation, and the finished model, read the atlas",
    )
    steps: int | None = option(None, "optimiser steps")
    stop_after: int | None = option(
        None, "stop here, with a checkpoint and the schedule of --steps; a repeated command goes further"
    )
    batch_size: int | None = option(None, "sequences a step, over all processes")
    micro_batch_size: int | None = option(None, "sequences a process computes at once; the rest is accumulated")
    token_budget: int | None = option(
        None,
        "tokens that a GPU computes at once, of as many sequences as they hold, without padding. Default: those of "
        "--micro-batch-size sequences of --max-length",
    )
    learning_rate: float | None = option(None, "peak, reached after the warm-up")
    glyph_learning_rate: float | None = option(None, "the same for HanGlyph's parameters")
    projection_learning_rate: float | None = option(
        None,
        "the same for HanGlyph's projections, of steps in whitened coordinates; without one they are "
        "trained as the rest of HanGlyph",
    )
    warmup_steps: int | None = option(None, "steps of linear warm-up before the decay")
    hold_steps: int = option(
        0,
        "in so many first steps, what makes vectors of characters (HanGlyph, or BERT's token embeddings) moves at "
        "--hold-share of its rates; afterwards they rise, in as many steps as the warm-up",
    )
    hold_share: float = option(0.3, "see --hold-steps; at 0 it stands still")
    still_steps: int | None = option(
        None,
        "in so many first steps HanGlyph's convolutions stand still, and what they make of each picture is computed "
        "once: such a step costs what BERT's does; afterwards their rates rise, in as many steps as the warm-up. "
        "Default: all steps of tiny, none of the others",
    )
    character_scaling: float | None = option(
        None,
        "divide the gradients of each character's vectors by their running root mean square, to this power, so that "
        "rare characters move beside frequent ones; 0: do not, 1: all weigh alike. Default: 0.5 of tiny, 0 of the "
        "others",
    )
    tied_decoder: bool | None = option(
        None,
        "while convolutions stand still, tie the decoder to the glyph vectors: a character's row moves with its "
        "vector, and what the row learns moves the vector. Default: yes of tiny, no of the others",
    )
    weight_decay: float = option(0.01, "AdamW's, not on biases, norms, and projections with a rate of their own")
    dropout: float | None = option(None, "everywhere, attention too")
    mask_probability: float = option(MASK_PROBABILITY, "share of the characters to predict")
    held_out: float = option(0.02, "share of the documents kept for validation")
    eval_every: int | None = option(None, "steps between validations")
    eval_samples: int = option(128, "sequences a validation reads")
    save_every: int | None = option(None, "steps between checkpoints")
    save_minutes: float | None = option(None, "save with a log, too, if the last checkpoint is as old as this")
    keep_checkpoints: int = option(2, "checkpoints that are kept")
    log_every: int | None = option(None, "steps between lines of metrics.jsonl")
    workers: int = option(
        1, "data loading processes of each training process; with 0 none, nor any that tokenise, else one for each core"
    )
    seed: int = option(0, "of weights, data order, masking and dropout")
    gradient_checkpointing: bool = option(False, "less memory, a third more time")
    cuda_graph: str = option(
        "auto", "auto: an NVIDIA GPU replays recorded steps, and never waits for the host; off: none", CUDA_GRAPH
    )
    attention: str = option("sdpa", "attention implementation", ATTENTIONS)
    reuse_memory: bool = option(
        True, "on a CPU: keep freed memory for the next step. Faster, but needs more at the peak"
    )
    report_to: list[str] = option(["tensorboard"], REPORT_TO)
    bf16: str = option("auto", "bfloat16 autocast; auto: on a GPU that has it", BF16)

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir = str(Path("runs") / (self.preset if self.arch == "glyphcrm" else f"{self.preset}-bert"))
        if self.init is not None and self.arch != "glyphcrm":
            raise UserError("--init continues a GlyphCRM; a --arch bert starts from scratch, leave it out")
        self.check_init(self.init)
        if self.ablation is not None and self.init is not None:
            raise UserError("--ablation starts from scratch; leave --init out")
        if self.ablation is not None and self.arch != ABLATIONS[self.ablation]:
            raise UserError(f"--ablation {self.ablation} is of --arch {ABLATIONS[self.ablation]}")
        if self.train_font and (self.arch != "glyphcrm" or self.ablation == FREE):
            raise UserError("--train-font is for models that read pictures; this one has a table of characters")
        if asked := [name for name in OF_PICTURES if getattr(self, name) and not self.has_convolutions]:
            option_name = f"--{asked[0].replace('_', '-')}"
            raise WithoutEffect(f"{option_name} is for models that read pictures; this one has a table of characters")
        if self.glyph_channels is not None and (self.init is not None or self.arch != "glyphcrm"):
            raise WithoutEffect("--glyph-channels is for a new GlyphCRM; leave it out with --init and with --arch bert")
        recipe = self.over(RECIPES[self.preset])
        if not self.has_convolutions:
            recipe = replace(recipe, still_steps=0, character_scaling=0.0)
        if not recipe.steps_of_still_convolutions:
            if self.tied_decoder:
                raise WithoutEffect("--tied-decoder ties while convolutions stand still; give --still-steps, too")
            recipe = replace(recipe, tied_decoder=False)
        self.recipe = recipe
        if self.ablation == PLAIN and recipe.projection_learning_rate is None:
            raise UserError(
                f"--ablation {PLAIN} changes nothing at --preset {self.preset}, whose projections are trained as its "
                "other weights are; leave it out"
            )
        sizes = ("steps", "batch_size", "micro_batch_size", "eval_samples", "eval_every", "save_every", "log_every")
        rates = ("learning_rate", "glyph_learning_rate", "projection_learning_rate")
        check_ranges(
            {**asdict(self), **asdict(recipe)},
            {
                (1, math.inf): sizes,
                (1, recipe.steps): ("stop_after",),
                (2, 1e6): ("keep_checkpoints",),  # the older goes before the newer is whole
                (8, math.inf): ("max_length",),
                (len(SPECIAL_TOKENS) + 1, math.inf): ("vocabulary_size",),
                (0, math.inf): ("warmup_steps", "hold_steps", "still_steps", "save_minutes", *rates),
                (0, 1024): ("workers",),
                (0, SEEDS - 1): ("seed",),
                (0, 1): ("weight_decay", "hold_share", "character_scaling"),
                SIZES["glyph_channels"]: ("glyph_channels",),
                (0, 0.99): ("dropout",),
                (0.001, 1): ("mask_probability",),
                (1e-9, 0.99): ("held_out",),
            },
        )
        if self.token_budget is not None and self.token_budget < recipe.max_length:
            raise UserError(
                f"--token-budget is {self.token_budget}; a sequence may have {recipe.max_length} tokens: give as many "
                "or more, or a smaller --max-length"
            )
        if recipe.save_every % recipe.log_every:
            raise UserError(
                f"--save-every {recipe.save_every} is not a multiple of --log-every {recipe.log_every}; "
                "a run that continues would log other means"
            )

    @property
    def has_convolutions(self) -> bool:
        """Whether the model has a HanGlyph, not a table of characters."""
        return self.arch == "glyphcrm" and self.ablation != FREE

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of a new model in which it differs from the base model."""
        wider = {} if self.glyph_channels is None else {"glyph_channels": self.glyph_channels}
        return {**PRESETS[self.preset], **wider}

    def identity(self) -> dict[str, object]:
        """Return the settings that decide the result of a run; those of a run that continues must be the same."""
        settings = {**asdict(self), **asdict(self.recipe), "still_steps": self.recipe.steps_of_still_convolutions}
        settings |= {"sizes": self.sizes if self.init is None else None}
        return {name: value for name, value in settings.items() if name not in IRRELEVANT}

    def settings(self) -> dict[str, object]:
        """Return what a recipe that repeats the run needs, whatever the architecture it is repeated with."""
        settings = {**asdict(self), **asdict(self.recipe)}
        left_out = () if self.has_convolutions else OF_PICTURES
        return {name: value for name, value in settings.items() if name not in left_out}
