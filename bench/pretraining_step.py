"""Pre-trains for two steps with either backend, from the same weights on the same batches, and compares.

    python -m bench.pretraining_step --output DIR [--preset base] [--no-bf16]

Runs `pretrain.py` itself, as a process for each backend and precision; what is compared is what it writes:
the losses and gradient norms in metrics.jsonl, and the final weights. In float32 the backends have to agree but for
rounding. In bfloat16 the kernels may be as far from float32 as PyTorch's own bfloat16 is, times two.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.environment import ROOT
from glyphcrm.cli.arguments import whole_number
from glyphcrm.config_values import PRESETS
from glyphcrm.errors import exit_code_of
from glyphcrm.training.progress import METRICS_FILE, read_metrics

STEPS = 2
MEASURES = ("mlm_loss", "nsp_loss", "grad_norm")
MEASURED = "losses and gradient norms"
# Relative distances that may be rounding, in (float32, bfloat16); in bfloat16 on top of HALF_TOLERANCE times
# PyTorch's own from float32. Adam divides gradients by their size, which makes rounding more visible in the updates.
MEASURES_TOLERANCE = (1e-3, 1e-2)
UPDATE_TOLERANCE = (0.05, 0.1)
HALF_TOLERANCE = 2.0
# Softmax does not change with the keys' biases: their gradients are 0 but for rounding, and Adam's updates noise.
NOISE = "attention.key.bias"
# Few distinct characters, as each is an image for Triton's interpreter to convolve.
SENTENCES = ("天地人大。", "大人天上。", "地上大天。", "上人地大。", "人上大地。")


Run = tuple[Tensor, dict[str, Tensor]]  # (STEPS, MEASURES); final weights minus the first ones


def pretrain(directory: Path, backend: str, arguments: Sequence[str], bf16: bool) -> None:
    """Run pretrain.py to its end; its output goes to this process's if it fails."""
    shutil.rmtree(directory, ignore_errors=True)  # or it would continue
    print(f"pretrain.py, {backend}, {'bfloat16' if bf16 else 'float32'}", flush=True)
    # TF32 in cuBLAS or cuDNN would be the larger difference.
    environment = {**os.environ, "GLYPHCRM_KERNEL_BACKEND": backend, "NVIDIA_TF32_OVERRIDE": "0"}
    command = [
        *(sys.executable, str(ROOT / "pretrain.py"), "--output-dir", str(directory), *arguments),
        *("--bf16", "on" if bf16 else "off"),
    ]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout)
        sys.exit(f"error: {' '.join(command)} ended with exit code {done.returncode}")
    for checkpoint in directory.glob("checkpoint-*"):  # gigabytes that nobody needs
        shutil.rmtree(checkpoint)


def read(directory: Path, first: dict[str, Tensor]) -> Run:
    steps = [entry for entry in read_metrics(directory / METRICS_FILE) if "mlm_loss" in entry]
    if len(steps) != STEPS:
        sys.exit(f"error: {directory / METRICS_FILE} has {len(steps)} training steps; there should be {STEPS}")
    measures = torch.tensor([[entry[name] for name in MEASURES] for entry in steps], dtype=torch.float64)
    weights = load_file(directory / "model" / "model.safetensors")
    return measures, {n: t.double() - first[n].double() for n, t in weights.items() if t.is_floating_point()}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.pretraining_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="directory for the runs")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="base")
    parser.add_argument("--batch-size", type=whole_number(1), default=16)
    parser.add_argument("--no-bf16", action="store_true", help="float32 only (Triton's interpreter needs that)")
    parser.add_argument("--text", nargs="+", default=[], help="files to read instead of the demo corpus")
    parser.add_argument("--small-text", action="store_true", help="a few sentences instead of the demo corpus")
    options = parser.parse_args(words)
    options.output.mkdir(parents=True, exist_ok=True)
    batch = str(options.batch_size)
    common = ["--preset", options.preset, "--dropout", "0", "--batch-size", batch, "--micro-batch-size", batch]
    common += ["--steps", str(STEPS), "--warmup-steps", "0", "--log-every", "1", "--save-every", str(STEPS)]
    common += ["--eval-every", str(STEPS), "--eval-samples", "2", "--workers", "0", "--no-input-only"]
    if options.text:
        common += ["--data", *options.text]
    elif options.small_text:
        text = options.output / "text.txt"
        documents = ["".join(SENTENCES[(i + j) % len(SENTENCES)] for j in range(10)) for i in range(40)]
        text.write_text("\n\n".join(documents), encoding="utf-8")
        common += ["--data", str(text)]

    # One set of first weights for all: a model's initialisation passes through the kernels, too.
    start = options.output / "start"
    pretrain(start, "reference", [*common, "--steps", "1", "--save-every", "1"], bf16=False)
    first = load_file(start / "model" / "model.safetensors")
    runs: dict[tuple[str, bool], Run] = {}
    for bf16 in (False,) if options.no_bf16 else (False, True):
        for backend in ("reference", "triton"):
            directory = options.output / f"{backend}-{'bf16' if bf16 else 'fp32'}"
            pretrain(directory, backend, [*common, "--init", str(start / "model")], bf16)
            runs[backend, bf16] = read(directory, first)
    if failures := compare(runs):
        sys.exit("error: " + "; ".join(failures))
    return 0


def distances(run: Run, exact: Run) -> dict[str, float]:
    """Return |difference| / |exact|: the largest of a loss or gradient norm, and that of each weight's update."""
    (measures, updates), (exact_measures, exact_updates) = run, exact
    moved = {name: t for name, t in exact_updates.items() if NOISE not in name and t.any()}
    return {
        MEASURED: float((measures / exact_measures - 1).abs().max()),
        **{name: float((updates[name] - t).norm() / t.norm()) for name, t in moved.items()},
    }


def compare(runs: dict[tuple[str, bool], Run]) -> list[str]:
    """Print how far the runs, by (backend, bf16), are from PyTorch in float32, and return what is too far."""
    exact = runs["reference", False]
    failures = []
    for (backend, bf16), run in runs.items():
        name = f"{backend}, {'bfloat16' if bf16 else 'float32'}"
        found, own = distances(run, exact), distances(runs["reference", bf16], exact)
        worst = max(list(found)[1:], key=found.__getitem__)
        losses = ", ".join(f"{loss:.6f}" for loss in run[0][:, 0].tolist())
        print(f"{name}: MLM loss {losses}; from PyTorch in float32, relative: {MEASURED} {found[MEASURED]:.1e},")
        print(f"    updates of the weights {found[worst]:.1e} ({worst}, the worst of {len(found) - 1})")
        for what, distance in found.items():
            rounding = (MEASURES_TOLERANCE if what == MEASURED else UPDATE_TOLERANCE)[bf16]
            allowed = rounding + HALF_TOLERANCE * own[what]
            if not distance <= allowed:
                failures.append(f"{name}: {what}: {distance:.1e} away, allowed {allowed:.1e}")
    return failures


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
