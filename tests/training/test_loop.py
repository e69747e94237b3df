"""The step and the loop: against transformers' Trainer, over processes, resumed, diverging."""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from glyphcrm.configuration import preset
from glyphcrm.errors import UserError
from glyphcrm.modeling.heads import GlyphCRMForMaskedLM
from glyphcrm.training import optimizer as optimizer_module
from glyphcrm.training import run_directory
from glyphcrm.training.loop import Step, Training, TrainingDiverged
from glyphcrm.training.machine import Machine
from glyphcrm.training.objective import Plan, Regularly
from glyphcrm.training.optimizer import OptimizerSettings, make_optimizer
from glyphcrm.training.progress import Display, Entry
from glyphcrm.training.run_checkpoint import read_progress
from glyphcrm.training.run_directory import check_whole, last_checkpoint, mark_complete
from glyphcrm.training.step_loader import Batch, PaddedMicroBatches
from tests.robustness.processes import run_ranks

CPU = Machine(torch.device("cpu"))
ROWS, LENGTH = 40, 8


def collate(samples: Sequence[dict[str, Tensor]]) -> Batch:
    """A batch of sequences of atlas rows; the first two tokens are to be predicted."""
    ids = torch.stack([sample["input_ids"] for sample in samples])
    labels = torch.stack([sample["labels"] for sample in samples])
    glyph_ids, glyph_index = ids.unique(return_inverse=True)
    return {"input_ids": ids, "labels": labels, "glyph_ids": glyph_ids, "glyph_index": glyph_index}


class Samples(Dataset[dict[str, Tensor]]):
    """Sample i depends on i alone, its number of labels too."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(position)
        ids = torch.randint(5, ROWS, (LENGTH,), generator=generator)
        labels = torch.where(torch.arange(LENGTH) <= position % 4, ids, -100)
        return {"input_ids": ids, "labels": labels}


class Characters:
    """An objective: the mean cross-entropy over all labels of a step."""

    def __init__(self, make: Callable[[Sequence[Any]], list[Batch]]) -> None:
        self.samples, self.micro_batches = Samples(), make
        self.sums = torch.zeros(1, dtype=torch.float64)

    def counts(self, batch: Batch) -> Tensor:
        return (batch["labels"] != -100).sum()[None]

    def loss(self, model: PreTrainedModel, batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        self.sums += 1
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum") / totals[0]

    def entry(self, sums: Sequence[float], seconds: float) -> Entry:
        return {"micro_batches": sums[0]}

    def validate(self, model: PreTrainedModel) -> Entry:
        assert not model.training
        return {"eval_weight": float(next(model.parameters()).detach().sum())}

    def is_over(self, history: Sequence[Entry]) -> bool:
        return False

    def kept(self, steps: Sequence[int], history: Sequence[Entry]) -> set[int]:
        return set(steps[-2:])

    def status(self, history: Sequence[Entry]) -> str:
        return ""

    def remark(self, entry: Entry) -> str | None:
        return None


def new_model(dropout: float = 0.0) -> GlyphCRMForMaskedLM:
    torch.manual_seed(0)
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = preset("nano", vocab_size=ROWS, num_glyphs=ROWS, **dropouts)
    model = GlyphCRMForMaskedLM(config)
    model.glyphcrm.glyph_table.bitmaps = torch.randint(0, 256, (ROWS, 288), dtype=torch.uint8)
    return model.train()


def plan(still_steps: int = 0, character_scaling: float = 0.0, tied_decoder: bool = False, **changes: Any) -> Plan:
    settings = OptimizerSettings(
        1e-3,
        warmup_steps=2,
        glyph_learning_rate=1e-4,
        projection_learning_rate=3e-5,
        still_steps=still_steps,
        character_scaling=character_scaling,
        tied_decoder=tied_decoder,
    )
    course = {"logs": range(0, 99, 3), "validations": {0, 4}, "saves": {4}, "end": 8}
    sizes = {"batch_size": 4, "micro_batch_size": 2}
    return Plan(steps=8, optimizer=settings, **{**course, **sizes, **changes})


def run(
    directory: Path, course: Plan, machine: Machine = CPU, cut: int = 2, dropout: float = 0.1
) -> tuple[GlyphCRMForMaskedLM, list[Entry]]:
    """Run, or continue, a training in `directory`; return the model, and the history without clocks."""
    directory.mkdir(exist_ok=True)
    model = new_model(dropout)
    objective = Characters(PaddedMicroBatches(collate, cut))
    training = Training(model, objective, course, machine, directory, Display("", shown=False), [])
    history = training.run(last_checkpoint(directory)).history
    return model, [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_step_is_one_of_transformers_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rate for all and no clipping: what is left is plain AdamW over the mean of all labels."""
    monkeypatch.setattr(optimizer_module, "MAX_NORM", 1e9)
    settings = OptimizerSettings(1e-3, weight_decay=0.1)
    ours, theirs = new_model(), new_model()
    micro_batches = [collate([Samples()[i] for i in pair]) for pair in ((0, 1), (2, 3))]
    optimizer = make_optimizer(ours, settings)
    step = Step(ours, Characters(PaddedMicroBatches(collate, 2)), optimizer, CPU)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    gradients: dict[str, Tensor] = {}
    update = step.update

    def keep_and_update() -> Tensor:
        gradients.update({name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None})
        return update()

    step.update = keep_and_update  # type: ignore[method-assign]
    loss, norm = step(micro_batches)

    class Gradients(TrainerCallback):
        found: dict[str, Tensor] = {}

        def on_pre_optimizer_step(self, *args: Any, model: PreTrainedModel, **kwargs: Any) -> None:
            self.found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
    )
    trainer = Trainer(theirs, arguments, train_dataset=Samples(), data_collator=collate, callbacks=[Gradients()])
    trainer.train()
    assert float(loss) == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-5)
    assert gradients.keys() == Gradients.found.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, Gradients.found[name], rtol=1e-4, atol=1e-6)
    assert float(norm) == pytest.approx(float(torch.stack([g.norm() for g in gradients.values()]).norm()), rel=1e-4)
    # Adam divides gradients by their size: the sign of one that is all but 0 is rounding.
    certain = {name: gradient.abs() > 1e-4 for name, gradient in gradients.items()}
    assert sum(int(where.sum()) for where in certain.values()) > 10_000
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name in certain:
            torch.testing.assert_close(mine[certain[name]], other[certain[name]], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("every", "last"), [(1, 5), (3, 10), (5, 10), (12, 10)])
def test_regular_steps_are_as_counted_out(every: int, last: int) -> None:
    """And of a run without an end, too, in no time."""
    assert {step for step in range(99) if step in Regularly(every, last)} == {*range(0, last + 1, every), last}
    assert 3 * 10**10 in Regularly(3, 10**11) and 10**10 + 1 not in Regularly(10, 10**11)


def test_a_run_that_continues_is_bit_for_bit_the_undisturbed_one(tmp_path: Path) -> None:
    """Stopped between two logs, after a checkpoint of the plan and after one of its own."""
    whole, history = run(tmp_path / "whole", plan())
    for end in (4, 5, 8):
        continued, told = run(tmp_path / "parts", plan(end=end))
    assert same(continued, whole) and told == history
    assert [entry["micro_batches"] for entry in history if "loss" in entry] == [6.0, 6.0]
    assert [(entry["step"], "eval_weight" in entry) for entry in history] == [
        (0, True),
        (3, False),
        (4, True),
        (6, False),
    ]
    assert sorted(path.name for path in (tmp_path / "parts").glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-8"]
    again, _ = run(tmp_path / "parts", plan())  # nothing is left to do
    assert same(again, whole)


def test_activation_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", plan(end=2))
    checkpointed, _ = run(tmp_path / "checkpointed", plan(end=2, gradient_checkpointing=True))
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_full_gpu_ends_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulate = Step.accumulate

    def full(self: Step, *arguments: Any) -> Tensor:
        if (tmp_path / "run" / "checkpoint-4").exists():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return accumulate(self, *arguments)

    monkeypatch.setattr(Step, "accumulate", full)
    with pytest.raises(UserError, match=r"full at step 4; .*checkpoint-4 is kept; make room there, or give a smaller"):
        run(tmp_path / "run", plan())


def test_a_gpu_without_room_for_the_model_is_told_in_a_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedModel, "to", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(UserError, match="full at step 0; there is no checkpoint yet; make room there"):
        run(tmp_path / "run", plan())


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_what_is_no_number_is_never_saved(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the loop looks only at logs and checkpoints, as on a GPU."""
    update, accumulate = Step.update, Step.accumulate
    steps = {"done": 0}

    def spoil_update(self: Step) -> Tensor:
        steps["done"] += 1
        if steps["done"] == 5 and what == "gradient":
            next(self.model.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
        norm = update(self)
        if steps["done"] == 5 and what == "weight":
            with torch.no_grad():
                next(self.model.parameters())[0] = float("nan")
        return norm

    def spoil_loss(self: Step, *arguments: Any) -> Tensor:
        loss = accumulate(self, *arguments)
        return loss * float("nan") if steps["done"] == 4 and what == "loss" else loss

    monkeypatch.setattr(Step, "update", spoil_update)
    monkeypatch.setattr(Step, "accumulate", spoil_loss)
    with pytest.raises(TrainingDiverged, match=r"at step [5-8]; .*checkpoint-4 is kept; lower --learning-rate"):
        run(tmp_path / "run", plan())
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    steps["done"] = 4
    with pytest.raises(TrainingDiverged, match="there is no checkpoint yet"):
        run(tmp_path / "other", plan(saves={}))


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", plan(end=4))
    checkpoint = tmp_path / "run" / "checkpoint-4"
    (checkpoint / "progress.json").unlink()
    record = json.loads((checkpoint / "complete.json").read_text())
    (checkpoint / "complete.json").write_text(json.dumps({n: of for n, of in record.items() if n != "progress.json"}))
    check_whole(checkpoint)
    with pytest.raises(UserError, match="another version of this program"):
        run(tmp_path / "run", plan())


def test_a_long_history_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that logs every step has hundreds of megabytes of it in the end."""
    directory = tmp_path / "run"
    run(directory, plan(end=4))
    checkpoint = directory / "checkpoint-4"
    monkeypatch.setattr(run_directory, "JSON_BYTES", (checkpoint / "complete.json").stat().st_size + 100)
    progress = read_progress(checkpoint)
    first = progress.history[0]
    progress.history = [first] * 100 + progress.history
    (checkpoint / "progress.json").write_text(json.dumps(vars(progress)))
    mark_complete(checkpoint)
    assert len(run(directory, plan())[1]) == 104


def test_another_kind_of_device_continues_with_random_numbers_of_its_own(tmp_path: Path) -> None:
    """The checkpoint has those of the device that wrote it."""
    run(tmp_path / "run", plan(end=4))
    checkpoint = tmp_path / "run" / "checkpoint-4"
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    torch.save({**state, "generators": [{"cuda": state["generators"][0]["cpu"]}]}, checkpoint / "state.pt")
    mark_complete(checkpoint)
    continued, _ = run(tmp_path / "run", plan())
    undisturbed, _ = run(tmp_path / "other", plan())
    assert not same(continued, undisturbed)  # in its dropout


def uneven(rank: int, samples: Sequence[Any]) -> list[Batch]:
    """One process cuts its share into pieces of 3 and 1, the other leaves it whole."""
    sizes = [samples[:3], samples[3:]] if rank == 0 else [samples]
    return [collate(part) for part in sizes]


def process(rank: int, port: int, root: Path) -> None:
    """One of two: a whole run in `root`/two, and the middle of the one in `root`/mixed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    machine = Machine(torch.device("cpu"), rank=rank, world=2)
    for name, end in (("two", 8), ("mixed", 6), ("by the clock", 8)):
        directory = root / name
        directory.mkdir(exist_ok=True)
        model = new_model()
        if rank:  # it has other weights at first: those of the first process count
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
        course = plan(batch_size=8, micro_batch_size=4, end=end, still_steps=2, tied_decoder=True)
        if name == "by the clock":  # the second process, whose clock says no, saves as well
            course = replace(course, saves={}, save_minutes=0.0 if rank == 0 else 1e9)
        objective = Characters(functools.partial(uneven, rank))
        training = Training(model, objective, course, machine, directory, Display("", shown=False), [])
        torch.save(training.run(last_checkpoint(directory)).history, directory / f"history-{rank}.pt")
        torch.save(model.state_dict(), directory / f"weights-{rank}.pt")
        machine.wait()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_processes_are_one_and_either_continues_the_other(tmp_path: Path) -> None:
    """With micro-batches that are not as many in each, nor with as many labels; convolutions move from step 2 on.

    Up to there the decoder is tied.
    """
    course = plan(batch_size=8, micro_batch_size=4, still_steps=2, tied_decoder=True)
    one, history = run(tmp_path / "one", course, cut=8, dropout=0.0)
    run(tmp_path / "mixed", replace(course, end=5), cut=8, dropout=0.0)
    run_ranks(process, (free_port(), tmp_path), 2)
    weights = [torch.load(tmp_path / "two" / f"weights-{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    close_to(one, weights[0])
    state = torch.load(tmp_path / "two" / "checkpoint-8" / "state.pt")
    assert not torch.equal(*(states["cpu"] for states in state["generators"]))  # else all would drop the same
    told = torch.load(tmp_path / "two" / "history-0.pt")
    for mine, theirs in zip(history, told, strict=True):
        assert theirs.get("loss", 0) == pytest.approx(mine.get("loss", 0), rel=1e-4)
        assert theirs.get("grad_norm", 0) == pytest.approx(mine.get("grad_norm", 0), rel=1e-3)
    assert {path.name for path in (tmp_path / "by the clock").glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
    # One process began, two went on, one ends.
    continued, _ = run(tmp_path / "mixed", course, cut=8, dropout=0.0)
    close_to(one, continued.state_dict())


def close_to(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Adam's steps are the rate at most: 8 steps of another sign would be 100 times as far."""
    for name, parameter in model.named_parameters():
        difference = (parameter - weights[name]).abs()
        assert difference.mean() < 2e-5, name
