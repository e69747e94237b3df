"""`glyphcrm tokenize`: text into what pre-training reads, as a whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `tokenize`; return the work that it asks for."""
    from glyphcrm.pretraining.shards import TokenizeOptions, tokenize_text

    options = TokenizeOptions.parse(words, prog)

    def run() -> int:
        print(tokenize_text(options))
        return 0

    return run
