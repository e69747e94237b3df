"""Timers: wall-clock seconds on a CPU, the device's own on a GPU, and whole programs by turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

import numpy as np
import torch

RUNS_BEFORE = 3  # compile, choose algorithms, fill caches
LONGEST_HOLD = 0.2  # seconds


class CpuClock:
    """Wall-clock seconds; a round is one call."""

    calls = 1
    host_was_late = False

    def __call__(self) -> float:
        return time.perf_counter()

    def prepare(self, *ways: Callable[[], object]) -> int:
        """Warm up, and return how many rounds make about a second."""
        slowest = 0.0
        for call in ways:
            for _ in range(RUNS_BEFORE - 1):
                call()
            start = self()
            call()
            slowest = max(slowest, self() - start)
        return min(30, max(5, round(1 / slowest)))

    def hold(self) -> None:
        """Nothing to do."""


class Stamp:
    """A moment on a GPU. The difference of two is in seconds a call, and waits for the later one."""

    def __init__(self, clock: GpuClock, previous: Stamp | None) -> None:
        self.clock, self.previous = clock, previous
        self.previous_was_over = previous is not None and previous.event.query()
        self.event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, start: Stamp) -> float:
        self.event.synchronize()
        if self.previous is start:
            self.clock.late.append(self.previous_was_over)
            self.previous = None
        return start.event.elapsed_time(self.event) / 1e3 / self.clock.calls


class GpuClock:
    """The GPU's seconds for one of `calls` launches in a row, without the host's.

    Before a round the GPU is kept busy (`hold`) while the host queues the whole round, so that it then
    runs without gaps, as in a training step whose host is ahead. If `host_was_late`, the time includes waiting for it.
    """

    rounds = 20

    def __init__(self) -> None:
        self.calls = 1
        self.late: list[bool] = []
        self._ways = 1
        self._hold = 0.0
        self._last: Stamp | None = None

    def __call__(self) -> Stamp:
        self._last = Stamp(self, self._last)
        return self._last

    def prepare(self, *ways: Callable[[], object]) -> int:
        """Warm up, choose how many calls of the slowest make two milliseconds, and return the number of rounds.

        The ways take turns in the rounds that follow; the slowest on the host sets the hold.
        """
        hosts, devices = [], []
        for call in ways:
            for _ in range(RUNS_BEFORE):
                call()
            torch.cuda.synchronize()
            self.calls = 1
            started, start = time.perf_counter(), self()
            call()
            hosts.append(time.perf_counter() - started)
            devices.append(self() - start)
        self.calls = min(50, max(1, round(2e-3 / max(devices))))
        self._hold = min(LONGEST_HOLD, 2 * max(hosts) * self.calls + 5e-4)
        self._ways = len(ways)
        self.late.clear()
        return self.rounds

    def hold(self) -> None:
        """Wait for the GPU, then keep it busy for as long as the host needs to queue a round."""
        torch.cuda.synchronize()
        torch.cuda._sleep(int(self._hold * 2e9))  # cycles; GPUs make about 2e9 a second

    @property
    def host_was_late(self) -> bool:
        """Whether, in most rounds of one of the ways, the GPU was idle before the host had queued the last launch."""
        turns = [self.late[way :: self._ways] for way in range(self._ways)]
        return any(turn and mean(turn) > 0.5 for turn in turns)


Clock = CpuClock | GpuClock


def clock_for(device: str) -> Clock:
    """Return the clock of "cpu" or "cuda"."""
    return GpuClock() if device == "cuda" else CpuClock()


def seconds_by_turns(ways: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Call every way once a round, in reverse order in every other round, and return the seconds of each call.

    A machine's speed drifts, so only what ran in the same minute compares. A way is called with the round's number.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in reversed(ways) if number % 2 else ways:
            gc.collect()
            start = time.perf_counter()
            ways[name](number)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance of the quartiles, 0 for one value."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)
