"""The machine that a training runs on: the device, the precision, and this process's place among those of torchrun."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from glyphcrm_kernels import choice
from glyphcrm_kernels._shared.memo import forget
from glyphcrm_kernels.conv.record import UNTRIED
from torch import Tensor, nn

from glyphcrm.errors import INTERRUPTED_EXIT_CODE, UserError

WAIT = timedelta(days=1)  # the other processes wait while the first prepares the data
BUCKET_ELEMENTS = 1 << 25  # of gradients that go through one all-reduce


@dataclass(frozen=True)
class Machine:
    """Where this process computes, and with how many others.

    Attributes:
        device: what the model lies on.
        bf16: whether forward passes run under bfloat16 autocast.
        rank: the number of this process; the first one, 0, prints and writes.
        world: how many processes there are.
    """

    device: torch.device
    bf16: bool = False
    rank: int = 0
    world: int = 1

    @classmethod
    @contextmanager
    def joined(cls, program: str, bf16: str = "auto") -> Iterator[Machine]:
        """Be one of the processes that torchrun started, or the only one; take the GPU that is this process's, if any.

        `bf16` is "auto" (on a GPU that has it), "on" or "off"; `program` is what the user starts.

        A single process on a machine with several GPUs takes the first and says how to use all.

        Raises:
            UserError: there are more processes than GPUs.
        """
        world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        device = _own_device(program, int(os.environ.get("LOCAL_RANK", "0")), world)
        joins = world > 1 and not dist.is_initialized()
        if joins:
            backend = "gloo"
            if device.type != "cpu":
                backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
            dist.init_process_group(backend, timeout=WAIT, device_id=None if device.type == "cpu" else device)
            _end_with_parent()
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        try:
            yield cls(device, has_bf16 if bf16 == "auto" else bf16 == "on", rank, world)
        except BaseException:
            # The others may never come: work that waits for them is given up, theirs ends with an error.
            if joins and dist.group.WORLD is not None:
                with contextlib.suppress(RuntimeError):
                    dist.group.WORLD.abort()
            raise
        if joins:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch with its tensors on the device; the host does not wait until they are there."""
        if self.device.type == "cpu":
            return dict(batch)
        pins = self.device.type == "cuda"  # else a copy would wait for what the GPU has to do before it
        return {
            name: (value.pin_memory() if pins else value).to(self.device, non_blocking=True)
            if isinstance(value, Tensor)
            else value
            for name, value in batch.items()
        }

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes, and return it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Return what each process gave, in their order."""
        values = [value]
        if self.world > 1:
            values = [None] * self.world
            dist.all_gather_object(values, value)
        return values

    def share(self, model: nn.Module) -> None:
        """Give all processes the first one's weights and buffers."""
        if self.world > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), 0)

    def try_convolutions(self, channels: int) -> None:
        """Let the first process with a GPU here try kernels that "auto" would take for it, had they run there before.

        Once for all runs, in a minute or two; whatever comes out, the run goes on, with a line if processes (on other
        machines, without a place to keep the outcome) then take other kernels. `channels` are HanGlyph's.
        """
        x = torch.empty(1, channels, 48, 48, dtype=torch.bfloat16 if self.bf16 else None, device=self.device)
        convolution = "glyph_conv", x, x.new_empty(channels, channels, 9, 9), x.new_empty(channels)
        if (self.device.index or 0) == 0 and UNTRIED in choice(*convolution).reason:
            from glyphcrm_kernels.conv import trial

            trial.run()
        self.wait()
        forget()  # what this process may have found before
        chosen = self.gather(choice(*convolution))
        taken = {found.implementation: found.reason for found in chosen}
        if self.is_first and len(taken) > 1:
            each = [
                f"{name} in {', '.join(str(rank) for rank, found in enumerate(chosen) if found.implementation == name)}"
                f"{f' ({reason})' if reason else ''}"
                for name, reason in taken.items()
            ]
            print(f"the processes take different convolutions, and the slowest sets the pace: {'; '.join(each)}")

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def first_process_first(self) -> Iterator[None]:
        """Let the first process run the block, and then the others, which find what it has made."""
        if not self.is_first:
            self.wait()
        try:
            yield
        finally:
            if self.is_first:
                self.wait()


class GradientSum:
    """Sums the gradients of all processes, in a few flat all-reduces.

    A parameter that has a gradient in any process after the first step has one in all of them from then on: zeros
    where a process's own samples did not reach it. One that has none anywhere stays without.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], machine: Machine) -> None:
        self._parameters, self._machine = parameters, machine
        self._buckets: list[list[nn.Parameter]] | None = None

    def __call__(self) -> None:
        """Replace every gradient by the sum of those of all processes."""
        if self._machine.world == 1:
            return
        if self._buckets is None:
            self._buckets = self._reached()
        sums = []
        for bucket in self._buckets:
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            sums.append((gradients, flat, dist.all_reduce(flat, async_op=True)))
        for gradients, flat, work in sums:
            work.wait()
            parts = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def _reached(self) -> list[list[nn.Parameter]]:
        """Return the parameters with a gradient in some process, in buckets."""
        has_gradient = torch.tensor([parameter.grad is not None for parameter in self._parameters], dtype=torch.int64)
        reached = self._machine.sum(has_gradient.to(self._machine.device)).tolist()
        buckets: list[list[nn.Parameter]] = [[]]
        size = 0
        for parameter, count in zip(self._parameters, reached, strict=True):
            if count:
                size += parameter.numel()
                if size > BUCKET_ELEMENTS and buckets[-1]:
                    buckets.append([])
                    size = parameter.numel()
                buckets[-1].append(parameter)
        return buckets


def _own_device(program: str, local_rank: int, world: int) -> torch.device:
    """Return the GPU of this process, made the current one, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    if world == 1 and count > 1:
        print(f"one of {count} GPUs is used; for all: torchrun --standalone --nproc-per-node={count} {program}")
    if local_rank >= count:
        raise UserError(f"there are {count} GPUs for more processes; give torchrun --nproc-per-node={count}")
    torch.accelerator.set_device_index(local_rank)
    return torch.device(accelerator.type, local_rank)


def _end_with_parent() -> None:
    """End this process, wherever it is, soon after torchrun was killed: nobody else would, should another one fail.

    At once and from a thread of its own, as it may be waiting for a process that is gone. A checkpoint that it is
    writing stays without its record, and does not count.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        with contextlib.suppress(OSError):  # nobody may be left to read it
            print("torchrun is gone; the same command continues from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED_EXIT_CODE)

    threading.Thread(target=watch, name="torchrun alive", daemon=True).start()
