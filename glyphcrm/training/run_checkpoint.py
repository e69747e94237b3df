"""The checkpoints of a run: everything that decides its further course.

model.safetensors  config.json     the model, as `save_pretrained` writes it
progress.json                      how far the run has come, and the lines of its metrics.jsonl
state.pt                           the optimiser, sums since the last log, each process's random generators
complete.json                      written last, see `run_directory`
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor
from transformers import PreTrainedModel

from glyphcrm.checkpoint import WEIGHTS_FILE
from glyphcrm.errors import UserError
from glyphcrm.files import follow_umask
from glyphcrm.training.progress import Entry
from glyphcrm.training.run_directory import checkpoints, mark_complete

PROGRESS_FILE, STATE_FILE = "progress.json", "state.pt"
# How torch.save says that a file could not be written.
TORCH_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "iostream error")


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimiser steps that are done.
        seconds: of training, without validations and checkpoints, over all continuations.
        history: what was logged: the lines of metrics.jsonl.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[Entry] = field(default_factory=list)


@dataclass
class TrainingState:
    """What is not in the model's weights.

    Attributes:
        optimizer: its state.
        sums: (k,) float64, over all processes, of what was measured since the last log.
        generators: of each process, the states of PyTorch's generators, see `generator_states`.
    """

    optimizer: dict[str, Any]
    sums: Tensor
    generators: list[dict[str, Tensor]]


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of PyTorch's generators of the CPU and the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Go on with random numbers where `generator_states` was called."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type], device)


def path_of(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint after a step is."""
    return run_dir / f"checkpoint-{step}"


def save(run_dir: Path, model: PreTrainedModel, state: TrainingState, progress: Progress) -> None:
    """Write a checkpoint; only the first process of a run calls this.

    Raises:
        UserError: it cannot be written; nothing of it is left, and those before it are.
    """
    directory = path_of(run_dir, progress.step)
    try:
        model.save_pretrained(directory)
        torch.save(vars(state), directory / STATE_FILE)
        (directory / PROGRESS_FILE).write_text(json.dumps(vars(progress)), encoding="utf-8")
        follow_umask(directory)
        mark_complete(directory)
    except (OSError, SafetensorError, RuntimeError, UserError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in TORCH_WRITE_FAILURES):
            raise
        shutil.rmtree(directory, ignore_errors=True)
        left = checkpoints(run_dir)
        kept = f"{left[-1].name} is kept" if left else "there is none before it"
        raise UserError(
            f"{directory} could not be written ({error}); {kept}; "
            "make room there, or make it writable, then repeat the command to continue"
        ) from error


def read_progress(directory: Path) -> Progress:
    """Return how far a run had come at a checkpoint; raise `UserError` if it is of another version of this program."""
    if not (directory / PROGRESS_FILE).exists():
        raise UserError(
            f"{directory} was written by another version of this program; "
            "finish the run with that version, or choose another --output-dir"
        )
    # `complete.json` vouches for it, however long the history is.
    return Progress(**json.loads((directory / PROGRESS_FILE).read_bytes()))


def read_weights(directory: Path, model: PreTrainedModel) -> None:
    """Give a model the weights of a checkpoint."""
    load_model(model, directory / WEIGHTS_FILE)


def read_state(directory: Path) -> TrainingState:
    """Return what `save` was given."""
    return TrainingState(**torch.load(directory / STATE_FILE, map_location="cpu", weights_only=True))
