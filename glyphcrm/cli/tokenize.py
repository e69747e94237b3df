"""`glyphcrm tokenize`: text into what pre-training reads, as a whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from glyphcrm.config_file import read_config


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `tokenize`; return the work that it asks for."""
    from glyphcrm.pretraining.shards import TokenizeOptions, tokenize_text

    options = TokenizeOptions.parse(words, prog)
    if options.init is not None:
        read_config(Path(options.init), ("GlyphCRM",))

    def run() -> int:
        print(tokenize_text(options))
        return 0

    return run
