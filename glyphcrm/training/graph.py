"""Work on a GPU recorded as CUDA graphs and replayed, so that the GPU never waits for the host.

What is recorded is a function without arguments and results over tensors that stay in place. The first time it simply
runs, which compiles its kernels and makes what is made once; the second time it is recorded; from then on the recording
is replayed. Recording runs nothing, so nothing has to be undone.

Random numbers: a replay draws from PyTorch's generator, from where it stands, as many numbers as the work would, and
each kernel the same ones; so dropout is drawn anew each time, and it makes no difference to a run when its recordings
are made, or that one which continues makes them again.

Memory: recordings of a kind share what they need, but work that is run, as the first time, needs as much again. Where
there is not so much, all recordings are dropped before it, and made again as they come: each would free nothing alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

Work = Callable[[], None]
Result = TypeVar("Result")
MOST = 48  # sizes with recordings; each takes about a second to make, and memory for its kernels' arguments


class CudaRecorder:
    """Makes CUDA graphs on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Give the context in which work is run, recorded and replayed."""
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield
        outer.wait_stream(self._stream)

    def new_pool(self) -> Any:
        """Return memory for recordings: what one has freed at its end, others of the pool write to."""
        return torch.cuda.graph_pool_handle()

    def record(self, work: Work, pool: Any) -> Work:
        """Return what replays `work`, which is called once and runs nothing; raise `RuntimeError` if that fails."""
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do meanwhile (pinning memory for the next batches) is none of the graph's business.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError:
            # A capture that became invalid ends without telling the allocator, whose memory then stays lost to others;
            # one that is over has told it, and gives the pool up with its graph.
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self._stream.device_index, pool)
                torch._C._cuda_releasePool(self._stream.device_index, pool)
            raise
        return graph.replay

    def room(self) -> int:
        """Give back memory that nothing uses any more; return how many bytes work could get."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def recover(self) -> None:
        """Make ordinary work possible after a failure; no recording that draws numbers is replayed afterwards."""
        # A failed recording may leave the generator in the belief that it goes on; a copy of it does not share that.
        generator = torch.cuda.default_generators[self._stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        with contextlib.suppress(RuntimeError):  # it is refused as long as the allocator believes in a capture
            torch.cuda.empty_cache()


class Recording:
    """Work in parts that run one after the other, always in this order; others may run in between.

    As its first part went, so do the others: run, or replayed.
    """

    def __init__(self, *parts: Work) -> None:
        self.parts = parts
        self.replays: list[Work] = []
        self.has_run = self.is_replayed = self.is_between = self.was_short = False


class Graphs:
    """The recordings of a training, by what they are of.

    Args:
        recorder: makes them.
        in_place: gives the tensors that all work reads or writes and that nobody may move: weights, gradients, buffers.
        tell: takes a message for the user, a line.
        most: so many recordings are kept; work of further sizes is run.
    """

    def __init__(
        self,
        recorder: CudaRecorder,
        in_place: Callable[[], Iterable[Tensor]],
        tell: Callable[[str], None],
        most: int = MOST,
    ) -> None:
        self._recorder, self._in_place, self._tell, self._most = recorder, in_place, tell, most
        self._kept: dict[Hashable, Any] = {}
        self._recordings: list[Recording] = []
        self._pools: dict[int, Any] = {}  # by the number of parts
        self._held: dict[int, int] = {}  # bytes of each
        self._addresses: tuple[int, ...] | None = None
        self._steps = 0
        self._given_up = self._is_full = self._was_short = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Give the context for the work of a step; the first one, which makes the gradients, is not recorded.

        Raises `RuntimeError`: a weight, a gradient or a buffer is no longer where it was.
        """
        self._steps += 1
        if self._steps > 1 and not self._given_up:
            addresses = tuple(tensor.data_ptr() for tensor in self._in_place())
            if self._addresses not in (None, addresses):
                raise RuntimeError("a weight, a gradient or a buffer has moved since a CUDA graph was made of it")
            self._addresses = addresses
        with self._recorder.running():
            yield

    def begin_anew(self) -> None:
        """Forget all work, as other weights get gradients from now on: the next step is the first one."""
        self._drop()
        self._kept.clear()
        self._steps, self._addresses = 0, None

    def of_size(self, size: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` has made for this size, the owner of a `Recording`; made anew when too many are kept."""
        if size in self._kept:
            return self._kept[size]
        made = make()
        if len(self._kept) < self._most:
            self._kept[size] = made
        elif not self._is_full:
            self._is_full = True
            self._tell(f"steps have more than {self._most} sizes: the further ones run without a CUDA graph")
        return made

    def run(self, recording: Recording, part: int = 0) -> None:
        """Run a part of some work, or replay it."""
        if part == 0:
            if recording not in self._recordings:  # it may have been dropped while it was between its parts
                recording.replays = []
            if recording.has_run and not recording.replays and self._steps > 1 and not self._given_up:
                self._record(recording)
            if not recording.replays:
                self._make_room(recording)
            recording.has_run = True
            recording.is_replayed = bool(recording.replays)
        recording.is_between = part + 1 < len(recording.parts)
        (recording.replays if recording.is_replayed else recording.parts)[part]()

    def beside(self, work: Callable[[], Result]) -> Result:
        """Return what `work`, of which there is no recording, does: without recordings, again, if memory is short."""
        try:
            return work()
        except torch.OutOfMemoryError:
            if not self._recordings:
                raise
        # Only here, without the error, is the memory free that it held.
        self._tell_short()
        self._drop()
        self._recorder.room()
        return work()

    def _record(self, recording: Recording) -> None:
        # What a part hands to the next one stays alive between them, while recordings of one part are replayed.
        kind, before = len(recording.parts), self._recorder.room()
        if kind not in self._pools:
            self._pools[kind] = self._recorder.new_pool()
        try:
            # Copies of weights in 16 bits that autocast may have kept from elsewhere are not part of the work.
            torch.clear_autocast_cache()
            recording.replays = [self._recorder.record(part, self._pools[kind]) for part in recording.parts]
            self._recordings.append(recording)
            self._held[kind] = self._held.get(kind, 0) + before - self._recorder.room()
            return
        except RuntimeError as error:
            reason, is_short = _reason(error), "out of memory" in _reason(error)
        # Only here, without the error, is the memory free that it held.
        others = bool(self._recordings)
        self._drop()
        self._recorder.recover()
        if is_short and others and not recording.was_short:
            recording.was_short = True  # a second time, those that were dropped for it have taken its place
            self._tell_short()
            self._record(recording)
        else:
            self._given_up = True
            self._tell(f"no CUDA graph could be made ({reason}); training goes on without")

    def _make_room(self, recording: Recording) -> None:
        """Drop the recordings if there is less memory than those of a kind hold, before work of that kind is run."""
        if self._held.get(len(recording.parts), 0) > 0 and self._recorder.room() < self._held[len(recording.parts)]:
            self._tell_short()
            self._drop()
            self._recorder.room()

    def _drop(self) -> None:
        """Let recordings and their memory go; those between their parts go on to their end."""
        for recording in self._recordings:
            if not recording.is_between:
                recording.replays = []
        self._recordings.clear()
        self._pools.clear()
        self._held.clear()

    def _tell_short(self) -> None:
        if not self._was_short:
            self._was_short = True
            self._tell("the GPU's memory is short: CUDA graphs are dropped and made again, which takes some seconds")


def _reason(error: RuntimeError) -> str:
    """Return a line; how a recording ended badly says less than why."""
    first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
    return (str(first) or type(first).__name__).splitlines()[0]


def in_place_of(model: torch.nn.Module) -> Callable[[], Iterable[Tensor]]:
    """Return what lists a model's weights, their gradients and its buffers."""

    def tensors() -> Iterator[Tensor]:
        for parameter in model.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
        yield from model.buffers()

    return tensors


def no_graph_because(device: torch.device, recomputes: bool) -> str:
    """Return why the steps on a device cannot be recorded, or an empty text; `recomputes` is gradient checkpointing."""
    if device.type != "cuda" or torch.version.hip:
        return "only an NVIDIA GPU has CUDA graphs"
    if recomputes:
        return "gradient checkpointing sets the random generator back, which no CUDA graph can record"
    return ""
