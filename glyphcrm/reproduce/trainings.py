"""The trainings of a reproduction, as the commands that a user would type."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator, Sequence

from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.finetuning.report import describe
from glyphcrm.finetuning.run import finetune
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.pretraining.run import pretrain


def run_pretrain(arguments: Sequence[object]) -> None:
    """Do what ``pretrain.py`` does with these arguments."""
    with _announced("pretrain.py", arguments) as words:
        pretrain(PretrainOptions.parse(words))


def run_finetune(arguments: Sequence[object]) -> None:
    """Do what ``finetune.py`` does with these arguments."""
    with _announced("finetune.py", arguments) as words:
        print(describe(finetune(FinetuneOptions.parse(words))), flush=True)


@contextlib.contextmanager
def _announced(program: str, arguments: Sequence[object]) -> Iterator[list[str]]:
    """Print a command; take back the signal handlers that a training sets."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ python {program} {shlex.join(words)}", flush=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield words
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
