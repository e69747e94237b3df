"""The trainings of a reproduction, as the commands that a user would type."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator, Sequence


class Interrupted(Exception):
    """A training was stopped by the user; it continues when it is started again."""


def run_pretrain(arguments: Sequence[object]) -> None:
    """Do what ``pretrain.py`` does with these arguments.

    Raises:
        Interrupted: it was stopped.
        UserError: as `glyphcrm.pretraining.run.pretrain`.
    """
    from glyphcrm.pretraining.options import parse_options
    from glyphcrm.pretraining.run import pretrain

    words = _announced("pretrain.py", arguments)
    with _interruptible():
        if pretrain(parse_options(words)) != 0:
            raise Interrupted


def run_finetune(arguments: Sequence[object]) -> None:
    """Do what ``finetune.py`` does with these arguments.

    Raises:
        Interrupted: it was stopped.
        UserError: as `glyphcrm.finetuning.run.finetune`.
    """
    from glyphcrm.cli.finetune import report
    from glyphcrm.finetuning.options import parse_options
    from glyphcrm.finetuning.run import finetune

    words = _announced("finetune.py", arguments)
    with _interruptible():
        print(report(finetune(parse_options(words))), flush=True)


def _announced(program: str, arguments: Sequence[object]) -> list[str]:
    words = [str(argument) for argument in arguments]
    print(f"\n$ python {program} {shlex.join(words)}", flush=True)
    return words


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C into `Interrupted`, and take back the signal handlers that a training sets."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
