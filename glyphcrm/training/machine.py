"""What a `Trainer` has to be told about the machine: device, precision, processes, where TensorBoard writes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from glyphcrm.errors import UserError


def training_arguments(program: str, run_dir: Path, bf16: str, workers: int, **settings: Any) -> TrainingArguments:
    """Return the arguments that any training of this project has; this also joins the processes of torchrun.

    Checkpoints and ``tensorboard/`` go to `run_dir`; `bf16` is "auto" (bfloat16 autocast on a GPU that has it), "on" or
    "off"; `workers` are data loading processes of each training process; `settings` are further keyword arguments.

    Raises:
        UserError: this process has several GPUs.
    """
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")
    # Buffers never change in training, so DDP need not send them; accelerate's new name for that does.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        # Unset, accelerate warns and sets it; torch's own choice is the one that has been measured.
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    arguments = TrainingArguments(
        output_dir=str(run_dir),
        bf16=has_bf16 if bf16 == "auto" else bf16 == "on",
        lr_scheduler_type="linear",
        logging_nan_inf_filter=False,  # it would hide a loss that diverged
        report_to=["tensorboard"],
        disable_tqdm=True,  # the project's own bars show more
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="sequential",  # the data set shuffles
        remove_unused_columns=False,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=24 * 3600,  # the other processes wait while the first prepares the data
        **settings,
    )
    if arguments.n_gpu > 1:
        raise UserError(
            f"there are several GPUs: start it with torchrun --standalone --nproc-per-node=NUMBER {program}"
        )
    return arguments


def checkpointing_argument(on: bool) -> dict[str, Any]:
    """Return the argument of `TrainingArguments` that recomputes activations; transformers 5 renames it on its way."""
    new, old = "activation_checkpointing", "gradient_checkpointing"
    return {new if new in TrainingArguments.__dataclass_fields__ else old: on}
