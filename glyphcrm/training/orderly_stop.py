"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

SAME_PRESS_SECONDS = 1.0


class OrderlyStop:
    """Hears the two signals within its block; what runs there looks at `asked`. Ctrl-C once more stops at once.

    Only where `hears` is set, for a single process: several would have to agree on the step, and lose at most the steps
    since the last checkpoint instead.
    """

    def __init__(self, hears: bool) -> None:
        self._signals = (signal.SIGINT, signal.SIGTERM) if hears else ()
        self._asked_at: float | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked_at is not None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.asked:  # a signal that came may arrive a second time
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            if hasattr(signal, "SIGCHLD"):
                # A signal to the whole group ends data loading processes; PyTorch would raise that in mid-step.
                signal.signal(signal.SIGCHLD, _nothing)
        # torchrun passes the terminal's Ctrl-C on, so that one press arrives twice.
        elif number == signal.SIGINT and now - self._asked_at > SAME_PRESS_SECONDS:
            raise KeyboardInterrupt


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
