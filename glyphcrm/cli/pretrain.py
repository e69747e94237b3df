"""`glyphcrm pretrain`, and pretrain.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from glyphcrm.pretraining.options import PretrainOptions


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line; return the work that it asks for."""
    options = PretrainOptions.parse(words, prog)

    def run() -> int:
        from glyphcrm.pretraining.run import pretrain

        pretrain(options)
        return 0

    return run
