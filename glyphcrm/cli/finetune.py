"""`glyphcrm finetune`, and finetune.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from glyphcrm.finetuning.options import FinetuneOptions


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line; return the work that it asks for."""
    options = FinetuneOptions.parse(words, prog)

    def run() -> int:
        from glyphcrm.finetuning.report import describe
        from glyphcrm.finetuning.run import finetune

        summary = finetune(options)
        if int(os.environ.get("RANK", "0")) == 0:
            print(describe(summary))
        return 0

    return run
