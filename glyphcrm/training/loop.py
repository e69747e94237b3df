"""The training loop: forward, backward, accumulation, clipping, schedule, logs, validations, checkpoints, exact resume.

Pre-training and fine-tuning are an `Objective` each, with a `Plan`:

    training = Training(model, objective, plan, machine, run_dir, display, records)
    progress = training.run(last_checkpoint(run_dir))

An optimiser step takes `Plan.batch_size` samples, however many processes share them and into how many micro-batches
each cuts its share: its loss is the mean over all labels of all of them. On a CPU a run that was interrupted at any
moment and continues is, bit for bit, the run that nobody disturbed.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from glyphcrm.errors import UserError
from glyphcrm.modeling import GlyphCRMModel, GlyphCRMPreTrainedModel
from glyphcrm.modeling.glyph_vectors import SharedGlyphs, hold_convolutions
from glyphcrm.modeling.hanglyph import HanGlyph
from glyphcrm.training import run_checkpoint
from glyphcrm.training.character_scaling import CharacterScaling
from glyphcrm.training.graph import CudaRecorder, Graphs, in_place_of
from glyphcrm.training.graphed_gradients import GraphedGradients
from glyphcrm.training.machine import GradientSum, Machine
from glyphcrm.training.objective import Objective, Plan
from glyphcrm.training.optimizer import clip_by_part, make_optimizer, parts_of, set_rates
from glyphcrm.training.options import SEEDS
from glyphcrm.training.orderly_stop import OrderlyStop
from glyphcrm.training.progress import Display, Entry, Record
from glyphcrm.training.run_checkpoint import Progress, TrainingState, generator_states, restore_generators
from glyphcrm.training.run_directory import checkpoints, step_of
from glyphcrm.training.step_loader import Batch, StepShares, micro_batches_of_steps
from glyphcrm.training.tied_decoder import TiedDecoder


class TrainingDiverged(UserError):
    """The loss or a gradient is no longer a finite number."""


class Step:
    """One optimiser step; nothing in it waits for the device.

    A step is `totals`, `share_glyphs`, for each micro-batch `accumulate`, the backward of the glyphs, and `update`:
    launched operation by operation or, all but the first and the last, as `graphed`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        machine: Machine,
        graphs: Graphs | None = None,
        tied: TiedDecoder | None = None,
    ) -> None:
        self.model, self.objective, self.optimizer, self.machine = model, objective, optimizer, machine
        self.parts, self.tied = parts_of(model), tied
        self.scaling = CharacterScaling.of(optimizer)
        self.sum_gradients = GradientSum(list(model.parameters()), machine)
        self.graphed: GraphedGradients | None = None
        if graphs is not None:
            base = model.base_model if isinstance(model, GlyphCRMPreTrainedModel) else None
            self.graphed = GraphedGradients(
                self.accumulate,
                cast(GlyphCRMModel | None, base),
                machine.autocast,
                machine.device,
                graphs,
                self.scaling,
            )

    def __call__(self, micro_batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Move the weights by one step; return this process's share of its loss, and the gradients' norm, both ()."""
        totals = self.totals(micro_batches)
        if self.graphed is not None:
            return self.graphed(micro_batches, totals), self.update()
        batches = [self.machine.on_device(batch) for batch in micro_batches]
        glyphs = self.share_glyphs(batches)
        loss = torch.zeros((), device=self.machine.device)
        for batch in batches:
            loss += self.accumulate(batch, batch if glyphs is None else glyphs.arguments(batch), totals)
        if glyphs is not None:
            glyphs.backward(self.scaling)
        return loss, self.update()

    def hold_convolutions(self, held: bool) -> None:
        """Let HanGlyph's convolutions stand still, with their features computed once, or move; between two steps.

        Raises `UserError`: the GPU has no room for the features.
        """
        base = self.model.base_model
        if not isinstance(base, GlyphCRMModel) or not isinstance(base.hanglyph, HanGlyph):
            return
        if held:
            pictures = base.glyph_table.all_pictures()
            try:
                with self.machine.autocast():
                    hold_convolutions(base.hanglyph, pictures, progress=self.machine.is_first)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"the GPU's memory has no room for HanGlyph's features of {len(pictures):,} pictures; "
                    "let the convolutions move, with another --output-dir, or make room"
                ) from error
        else:
            base.hanglyph.still = None
        # Others than before get gradients.
        self.sum_gradients = GradientSum(list(self.model.parameters()), self.machine)
        if self.graphed is not None:
            self.graphed.begin_anew()

    def totals(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Return the objective's counts of the step, over all processes."""
        own = torch.stack([self.objective.counts(batch) for batch in micro_batches]).sum(0)
        counts = self.machine.on_device({"counts": own})["counts"]
        return self.machine.sum(counts).clamp_min(1).float()

    def share_glyphs(self, batches: Sequence[Batch]) -> SharedGlyphs | None:
        """Run HanGlyph for all characters of the step, where that is less work, or they are scaled together."""
        alone = len(batches) * self.machine.world == 1 and self.scaling is None
        if alone or not isinstance(self.model, GlyphCRMPreTrainedModel):
            return None
        with self.machine.autocast():
            return SharedGlyphs(cast(GlyphCRMModel, self.model.base_model), batches)

    def accumulate(self, batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
        """Add a micro-batch's gradients to those there are; return its share of the loss."""
        with self.machine.autocast():
            loss = self.objective.loss(self.model, batch, inputs, totals)
        loss.backward()
        return loss.detach()

    def update(self) -> Tensor:
        """Let the gradients of all processes move the weights, and drop them; return their norm before clipping.

        Where graphs add to them they stay, as zeros.
        """
        self.sum_gradients()
        if self.tied is not None:
            self.tied.share_gradient()
        norm = clip_by_part(self.parts)
        self.optimizer.step()
        if self.tied is not None:
            self.tied.follow()
        if self.graphed is None:
            self.model.zero_grad()
        else:  # in a few launches; `zero_grad` would take one for each parameter
            torch._foreach_zero_([p.grad for p in self.model.parameters() if p.grad is not None])
        return norm


class Training:
    """A run: a model on its way through a plan."""

    recorder: Callable[[torch.device], CudaRecorder] = CudaRecorder

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        plan: Plan,
        machine: Machine,
        run_dir: Path,
        display: Display,
        records: Sequence[Record],
    ) -> None:
        self.model, self.objective, self.plan, self.machine, self.run_dir = model, objective, plan, machine, run_dir
        self.display, self.records = display, records if machine.is_first else ()
        self.progress = Progress()
        self.saved: Path | None = None  # the newest checkpoint
        # Of the steps since the last log, this process's shares of the loss.
        self.losses = torch.zeros(1, dtype=torch.float64, device=machine.device)
        self._since = self._saved_at = time.perf_counter()

    def run(self, checkpoint: Path | None) -> Progress:
        """Train up to `Plan.end`, from a checkpoint if there is one; return how far the run has come.

        Raises:
            UserError: the loss diverged, or something could not be written.
            KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint is saved.
        """
        stop, still_steps = OrderlyStop(hears=self.machine.world == 1), self.plan.optimizer.still_steps
        try:
            self._train(checkpoint, stop)
        except torch.OutOfMemoryError as error:
            features = ", or let HanGlyph's convolutions move" if self.progress.step < still_steps else ""
            raise UserError(
                f"the GPU's memory was full at step {self.progress.step}; {self._newest}; make room there, "
                f"or give a smaller --micro-batch-size{features}, with another --output-dir"
            ) from error
        if stop.asked:
            raise KeyboardInterrupt(f"stopped; {self._newest}; the same command continues")
        return self.progress

    def _train(self, checkpoint: Path | None, stop: OrderlyStop) -> None:
        plan, machine, model = self.plan, self.machine, self.model
        set_seed((plan.seed + machine.rank) % SEEDS)
        if checkpoint is not None:
            self.progress, self.saved = run_checkpoint.read_progress(checkpoint), checkpoint
            run_checkpoint.read_weights(checkpoint, model)
        model.to(machine.device)  # type: ignore[arg-type]
        if self.is_over:
            return
        machine.share(model)
        if plan.gradient_checkpointing:
            # transformers 5 renames it on its way.
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.optimizer = make_optimizer(model, plan.optimizer)
        recorded = plan.cuda_graph
        self.graphs = Graphs(self.recorder(machine.device), in_place_of(model), self._say) if recorded else None
        tied = TiedDecoder.of(model, machine.autocast) if plan.optimizer.tied_decoder else None
        step = Step(model, self.objective, self.optimizer, machine, self.graphs, tied)
        still_steps = plan.optimizer.still_steps
        try:
            if self.progress.step < still_steps:  # may take minutes, in which nothing is lost: Ctrl-C ends it at once
                step.hold_convolutions(True)
            self._begin()
            with stop:
                if checkpoint is None and 0 in plan.validations:
                    self._validate()
                steps = self._steps()
                if checkpoint is not None:
                    self._continue(checkpoint)
                while not (self.is_over or stop.asked):
                    if self.progress.step == still_steps > 0:
                        self._say("HanGlyph's convolutions move from here on")
                        step.hold_convolutions(False)
                    set_rates(self.optimizer, plan.optimizer, self.progress.step, plan.steps)
                    try:
                        micro_batches = next(steps)
                    except RuntimeError:
                        if stop.asked:  # a signal to the whole group has ended the processes that load data
                            break
                        raise
                    loss, norm = step(micro_batches)
                    self._after_step(loss, norm)
                if self.saved is None or step_of(self.saved) != self.progress.step:
                    self._save()
        finally:
            self.display.close()
            step.hold_convolutions(False)

    @property
    def is_over(self) -> bool:
        """Whether there is no further step."""
        return self.progress.step >= self.plan.end or self.objective.is_over(self.progress.history)

    def _begin(self) -> None:
        for record in self.records:
            record.begin(self.progress.history)
        self.display.open(self.progress.step, self.plan.steps)
        self.model.train()
        self._since = time.perf_counter()

    def _say(self, line: str) -> None:
        self.display.tell(self.objective.status(self.progress.history), line)

    def _steps(self) -> Iterator[list[Batch]]:
        plan = self.plan
        shares = StepShares(self.progress.step, plan.steps, plan.batch_size, plan.micro_batch_size, self.machine)
        return micro_batches_of_steps(self.objective.samples, shares, self.objective.micro_batches, plan.workers)

    def _continue(self, checkpoint: Path) -> None:
        """Go on with what is not in the weights, random numbers last: making the data loader takes one."""
        machine, state = self.machine, run_checkpoint.read_state(checkpoint)
        self.optimizer.load_state_dict(state.optimizer)
        if machine.is_first:
            self.losses.copy_(state.sums[:1])
            self.objective.sums.copy_(state.sums[1:])
        if len(state.generators) == machine.world and machine.device.type in state.generators[machine.rank]:
            restore_generators(state.generators[machine.rank], machine.device)
        else:  # another number of processes continues, or another kind: random numbers that the run has not seen
            set_seed((self.plan.seed + self.progress.step * machine.world + machine.rank) % SEEDS)

    def _after_step(self, loss: Tensor, norm: Tensor) -> None:
        """Log, validate and save where the plan says so; only there a GPU is waited for."""
        plan, progress = self.plan, self.progress
        progress.step += 1
        self.losses += loss
        self.display.advance()
        logs, validates, saves = (progress.step in steps for steps in (plan.logs, plan.validations, plan.saves))
        if logs and plan.save_minutes is not None:
            is_due = time.perf_counter() - self._saved_at >= 60 * plan.save_minutes
            # By the clock of the first process: those of several would not agree.
            saves |= self.machine.gather(is_due)[0]
        if logs or validates or saves or self.machine.device.type == "cpu":
            loss_so_far, last_norm = torch.stack([self.losses[0], norm]).tolist()
            self._check_finite("loss", loss_so_far)
            self._check_finite("gradient norm", last_norm)
        if logs:
            self._log(norm)
        if validates:
            self._validate()
        if saves:
            self._save()

    def _log(self, norm: Tensor) -> None:
        """Record the means since the last log, over all processes."""
        progress = self.progress
        loss, *sums = self._all_sums().tolist()
        self.losses.zero_()
        self.objective.sums.zero_()
        self._tick()
        logs = (entry for entry in reversed(progress.history) if "loss" in entry)
        before: Entry = next(logs, {"seconds": 0, "step": 0})
        entry = {
            "loss": loss / (progress.step - before["step"]),
            "grad_norm": float(norm),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **self.objective.entry(sums, progress.seconds - before["seconds"]),
        }
        self._record(entry)

    def _validate(self) -> None:
        with self._clock_stopped():
            self.model.eval()
            validate = partial(self.objective.validate, self.model)
            entry = self.graphs.beside(validate) if self.graphs is not None else validate()
            self.model.train()
            for name, value in entry.items():
                self._check_finite(name, value)
            self._record(entry)

    def _save(self) -> None:
        """Write a checkpoint, and remove those that are not kept."""
        with self._clock_stopped():
            names, parameters = zip(*self.model.named_parameters(), strict=True)
            weights = torch.stack([parameter.detach().sum() for parameter in parameters]).tolist()
            for name, value in zip(names, weights, strict=True):
                self._check_finite(f"sum of {name}", value)
            sums, generators = self._all_sums().cpu(), self.machine.gather(generator_states(self.machine.device))
            if self.machine.is_first:
                state = TrainingState(self.optimizer.state_dict(), sums, generators)
                run_checkpoint.save(self.run_dir, self.model, state, self.progress)
                saved = {step_of(path): path for path in checkpoints(self.run_dir)}
                for step in saved.keys() - self.objective.kept(list(saved), self.progress.history):
                    shutil.rmtree(saved[step])
            self.saved = run_checkpoint.path_of(self.run_dir, self.progress.step)
            self._saved_at = time.perf_counter()
            self.machine.wait()

    def _record(self, entry: Entry) -> None:
        progress = self.progress
        entry |= {"seconds": progress.seconds, "step": progress.step}
        progress.history.append(entry)
        for record in self.records:
            record.write(entry)
        self.display.tell(self.objective.status(progress.history), self.objective.remark(entry))

    def _all_sums(self) -> Tensor:
        return self.machine.sum(torch.cat([self.losses, self.objective.sums]))

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the {name} is {value} at step {self.progress.step}; {self._newest}; "
                "lower --learning-rate or warm up for longer, with another --output-dir"
            )

    @property
    def _newest(self) -> str:
        return f"{self.saved} is kept" if self.saved else "there is no checkpoint yet"

    def _tick(self) -> None:
        """Count the seconds up to now as training."""
        now = time.perf_counter()
        self.progress.seconds += now - self._since
        self._since = now

    @contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Do not count the seconds of the block."""
        self._tick()
        yield
        self._since = time.perf_counter()
