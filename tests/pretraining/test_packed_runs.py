"""Pre-training as on a GPU: packed rows of fixed shapes, and recorded steps, here over emulated graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glyphcrm.configuration import preset
from glyphcrm.data.packed_collator import PackedCollator
from glyphcrm.modeling import GlyphCRMForPreTraining, packed_attention
from glyphcrm.pretraining import run as run_module
from glyphcrm.pretraining.objective import PretrainingObjective
from glyphcrm.training.loop import Training
from glyphcrm.training.machine import Machine
from glyphcrm.training.progress import read_metrics
from glyphcrm.training.run_directory import check_whole
from tests.pretraining.runs import command, main
from tests.training import emulated_graphs
from tests.training.emulated_graphs import EmulatedGraphs

PADDED, PACKED, RECORDED = "padded", "packed", "recorded"
# A row holds two of the longest sequences, and a step makes one to three rows.
COURSE = ("--steps", "10", "--batch-size", "8", "--micro-batch-size", "8", "--max-length", "32", "--workers", "0")
MORE = (*COURSE, "--log-every", "1", "--save-every", "5", "--eval-every", "10", "--dropout", "0")


@pytest.fixture
def on_a_cpu() -> Iterator[None]:
    """Also where there is a GPU, on which no graph is emulated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture
def as_on_a_gpu(on_a_cpu: None, monkeypatch: pytest.MonkeyPatch) -> list[EmulatedGraphs]:
    """Pack and record on the CPU, whose values the host must not read; return the recorders of the runs."""
    recorders: list[EmulatedGraphs] = []

    def recorder(device: torch.device) -> EmulatedGraphs:
        recorders.append(EmulatedGraphs())
        return recorders[-1]

    def packed(options, machine, model):  # type: ignore[no-untyped-def]
        return PackedCollator(options.token_budget or 64, options.recipe.max_length)

    emulated_graphs.as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(run_module, "packed_collator", packed)
    monkeypatch.setattr(run_module, "no_graph_because", lambda *_: "")
    monkeypatch.setattr(Training, "recorder", staticmethod(recorder))
    return recorders


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "options",
    [(), ("--still-steps", "8", "--character-scaling", "0.5", "--tied-decoder", "yes")],
    ids=["plain", "tiny"],
)
def test_recorded_steps_are_the_packed_ones_and_these_the_padded_ones(
    text_file: Path,
    tmp_path: Path,
    as_on_a_gpu: list[EmulatedGraphs],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    """After ten steps; also when the run was stopped after five, and its recordings are made at other steps."""
    course = (*MORE, *options)
    for name, more in ((RECORDED, ()), (PACKED, ("--cuda-graph", "off"))):
        assert main(command(text_file, tmp_path / name, *course, *more)) == 0
    (recorder,) = as_on_a_gpu
    assert recorder.replayed > 20 and not recorder.recovered
    for more in (("--stop-after", "5"), ()):
        assert main(command(text_file, tmp_path / "continued", *course, *more)) == 0
    monkeypatch.undo()
    assert main(command(text_file, tmp_path / PADDED, *course)) == 0
    expected = weights(tmp_path / PADDED)
    for name in (RECORDED, PACKED, "continued"):
        found = weights(tmp_path / name)
        # Adam makes much of the rounding of small gradients.
        assert max(float((found[key] - value).abs().max()) for key, value in expected.items()) < 2e-3, name
        assert same_logs(tmp_path / name, tmp_path / PADDED)


def test_a_loss_that_diverges_in_a_recorded_step_keeps_the_last_checkpoint(
    text_file: Path, tmp_path: Path, as_on_a_gpu: list[EmulatedGraphs], capsys: pytest.CaptureFixture[str]
) -> None:
    more = (*MORE, "--save-every", "1", "--learning-rate", "1e20", "--warmup-steps", "3")
    assert main(command(text_file, tmp_path / "run", *more)) == 2
    assert as_on_a_gpu[0].replayed > 0 and "is kept" in capsys.readouterr().err
    checkpoint = max((tmp_path / "run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    check_whole(checkpoint)
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())


def test_a_validation_without_memory_drops_recordings(
    text_file: Path,
    tmp_path: Path,
    as_on_a_gpu: list[EmulatedGraphs],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where training does, too; and goes on."""
    validate, rooms = PretrainingObjective.validate, list[int]()

    def where_there_is_room(self: PretrainingObjective, model: Any) -> Any:
        rooms.append(as_on_a_gpu[0].memory - as_on_a_gpu[0].room())
        if rooms[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return validate(self, model)

    monkeypatch.setattr(PretrainingObjective, "validate", where_there_is_room)
    assert main(command(text_file, tmp_path / "run", *MORE, "--steps", "5", "--eval-every", "4")) == 0
    assert rooms[0] == 0 < rooms[1] and rooms[2] == 0 and "memory is short" in capsys.readouterr().out
    assert [entry["step"] for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in entry] == [
        *(0, 4, 5)
    ]


def test_rows_are_packed_where_attention_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a row would cost the square of its length, and a padded batch is less work."""
    recipe = SimpleNamespace(micro_batch_size=4, max_length=32)
    options: Any = SimpleNamespace(recipe=recipe, token_budget=None, mask_probability=0.15)

    def is_packed(attention: str, capability: tuple[int, int], bf16: bool) -> bool:
        monkeypatch.setattr(packed_attention, "_capability", lambda _: capability)
        model = GlyphCRMForPreTraining(preset("nano", vocab_size=40, num_glyphs=40, attn_implementation=attention))
        machine = Machine(torch.device("cuda", 0), bf16=bf16)
        return run_module.packed_collator(options, machine, model) is not None

    assert is_packed("sdpa", (9, 0), True) and is_packed("sdpa", (7, 5), False)
    assert not is_packed("eager", (9, 0), True) and not is_packed("sdpa", (7, 5), True)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not is_packed("sdpa", (9, 0), True)


@pytest.mark.parametrize("budget", ["31", "0", "-5"])
def test_a_budget_below_the_longest_sequence_is_refused(
    text_file: Path, tmp_path: Path, budget: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(command(text_file, run, "--max-length", "32", "--token-budget", budget)) == 2
    error = capsys.readouterr().err
    assert f"--token-budget is {budget}" in error and "32" in error and error.count("\n") == 1
    assert not run.exists()


def same_logs(run: Path, other: Path) -> bool:
    """Whether two runs have measured the same things, but for rounding and time."""
    timed = ("seconds", "tokens_per_second", "distinct_characters")
    pairs = zip(read_metrics(run / "metrics.jsonl"), read_metrics(other / "metrics.jsonl"), strict=True)
    return all(
        entry.keys() == expected.keys()
        and all(entry[name] == pytest.approx(expected[name], abs=2e-3) for name in entry if name not in timed)
        for entry, expected in pairs
    )


@pytest.mark.skipif(not torch.cuda.is_available() or torch.version.hip is not None, reason="no NVIDIA GPU")
def test_a_gpu_learns_the_same_recorded_launched_and_continued(text_file: Path, tmp_path: Path) -> None:
    """With dropout: replays draw what launched steps draw."""
    course = (*MORE, "--bf16", "off", "--dropout", "0.1")
    for name, more in (("recorded", ()), ("launched", ("--cuda-graph", "off"))):
        assert main(command(text_file, tmp_path / name, *course, *more)) == 0
    for more in (("--stop-after", "5"), ()):
        assert main(command(text_file, tmp_path / "continued", *course, *more)) == 0
    assert same_logs(tmp_path / "recorded", tmp_path / "launched")
    assert same_logs(tmp_path / "continued", tmp_path / "recorded")
