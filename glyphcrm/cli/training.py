"""`glyphcrm pretrain`, `tokenize`, `finetune` and `reproduce`: options are read before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glyphcrm.config_file import read_config
from glyphcrm.config_values import POSITIONS, PRESETS
from glyphcrm.data.dataset_rows import PREFIX
from glyphcrm.data.excluded_characters import read_characters
from glyphcrm.data.remote_files import is_url
from glyphcrm.data.text_files import expand
from glyphcrm.files import check_directory
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.pretraining.options import TextOptions
from glyphcrm.training.options import accumulation, check_length


def parse_pretrain(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `pretrain`; return the work that it asks for."""
    from glyphcrm.pretraining.options import PretrainOptions

    options = PretrainOptions.parse(words, prog)
    check_length(options.recipe.max_length, _positions(options.preset, options.init))
    accumulation(options.recipe.batch_size, options.recipe.micro_batch_size, _processes())
    check_directory(options.run_dir)
    _check_files(options, options.train_font)

    def run() -> int:
        from glyphcrm.pretraining.run import pretrain

        pretrain(options)
        return 0

    return run


def parse_tokenize(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `tokenize`; return the work that it asks for."""
    from glyphcrm.pretraining.shards import TokenizeOptions, tokenize_text

    options = TokenizeOptions.parse(words, prog)
    check_length(options.max_length, _positions(options.preset, options.init))
    check_directory(options.run_dir)
    _check_files(options)

    def run() -> int:
        print(tokenize_text(options))
        return 0

    return run


def parse_finetune(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `finetune`; return the work that it asks for."""
    from glyphcrm.finetuning.data import load_data
    from glyphcrm.finetuning.options import FinetuneOptions

    options = FinetuneOptions.parse(words, prog)
    check_length(options.max_length, _positions_in(read_config(Path(options.model))))
    options.micro_batch(_processes())  # or it is refused
    check_directory(options.run_dir)
    for font in (*options.train_font, *options.test_font):
        open_font(font)
    data = load_data(options)

    def run() -> int:
        from glyphcrm.finetuning.results import describe
        from glyphcrm.finetuning.run import finetune

        summary = finetune(options, data)
        if int(os.environ.get("RANK", "0")) == 0:
            print(describe(summary))
        return 0

    return run


def parse_reproduce(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `reproduce`; return the work that it asks for."""
    from glyphcrm.reproduce.inputs import check_inputs
    from glyphcrm.reproduce.options import ReproduceOptions

    options = ReproduceOptions.parse(words, prog)
    check_directory(options.run_dir)
    check_inputs(options)

    def run() -> int:
        from glyphcrm.reproduce.run import reproduce

        print(f"\n{reproduce(options)}")
        return 0

    return run


def _check_files(options: TextOptions, train_font: Sequence[str] = ()) -> None:
    """Raise `UserError` for a file of this machine that cannot be read; others are asked for once, when they are."""
    if local := [name for name in options.data if not is_url(name) and not name.startswith(PREFIX)]:
        expand(local)
    if options.exclude_characters is not None:
        read_characters(Path(options.exclude_characters))
    for font in (*options.font, *train_font):
        open_font(font)


def _positions(preset: str, init: str | None) -> int:
    """Return how many tokens the model of a pre-training reads at most; raise `UserError` if `init` is none."""
    return _positions_in(PRESETS[preset] if init is None else read_config(Path(init), ("GlyphCRM",)))


def _positions_in(config: Mapping[str, Any]) -> int:
    return int(config.get("max_position_embeddings") or POSITIONS)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
