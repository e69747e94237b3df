"""`glyphcrm pretrain`, `tokenize`, `finetune` and `reproduce`: options are read before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from glyphcrm.config_file import read_config


def parse_pretrain(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `pretrain`; return the work that it asks for."""
    from glyphcrm.pretraining.options import PretrainOptions

    options = PretrainOptions.parse(words, prog)
    if options.init is not None:
        read_config(Path(options.init), ("GlyphCRM",))

    def run() -> int:
        from glyphcrm.pretraining.run import pretrain

        pretrain(options)
        return 0

    return run


def parse_tokenize(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `tokenize`; return the work that it asks for."""
    from glyphcrm.pretraining.shards import TokenizeOptions, tokenize_text

    options = TokenizeOptions.parse(words, prog)
    if options.init is not None:
        read_config(Path(options.init), ("GlyphCRM",))

    def run() -> int:
        print(tokenize_text(options))
        return 0

    return run


def parse_finetune(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `finetune`; return the work that it asks for."""
    from glyphcrm.finetuning.options import FinetuneOptions

    options = FinetuneOptions.parse(words, prog)
    read_config(Path(options.model))

    def run() -> int:
        from glyphcrm.finetuning.results import describe
        from glyphcrm.finetuning.run import finetune

        summary = finetune(options)
        if int(os.environ.get("RANK", "0")) == 0:
            print(describe(summary))
        return 0

    return run


def parse_reproduce(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `reproduce`; return the work that it asks for."""
    from glyphcrm.reproduce.options import ReproduceOptions

    options = ReproduceOptions.parse(words, prog)

    def run() -> int:
        from glyphcrm.reproduce.run import reproduce

        print(f"\n{reproduce(options)}")
        return 0

    return run
