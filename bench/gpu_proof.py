"""Everything that only a GPU can prove, in one command: `make gpu-proof`.

    python -m bench.gpu_proof [--output gpu-proof] [--text FILE ...] [--only WORD ...] [--minutes N] [--dry-run]

Tries the convolutions for Hopper, measures training steps beside BERT's and what the host spends on a call, runs the
tests of recorded steps, and measures the operations in bfloat16. If it is given more than its eight minutes, there
follows what takes long: pre-training steps of both backends, compute-sanitizer's race, memory and synchronisation
checks over every kernel (if it is installed), all tests of what a GPU does, the static report, all benchmarks.
Writes report.json and report.md, anew after each step, and a log for each step, into the output folder.
Exit code: 0 if all that ran passed, 1 if not or if nothing ran, 2 if there is no GPU that the kernels support.

`--dry-run` needs no GPU: the same commands, with the kernels in Triton's interpreter and what would take long
cut down (each step in the report has its command). It proves the way, not the kernels.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.arguments import minutes as minutes_of
from bench.environment import ROOT, first_line
from bench.environment import versions as versions_of
from bench.results import read, table
from glyphcrm.data.dataset_rows import PREFIX
from glyphcrm.data.remote_files import is_url
from glyphcrm.data.text_files import expand
from glyphcrm.errors import exit_code_of

TAIL_LINES = 25
BENCHMARKS = "benchmarks.json"
RECORDED_TESTS = ("tests/training/test_graph.py", "tests/pretraining/test_packed_runs.py")
TESTS = ("tests/kernels", "tests/modeling/test_backend.py", "tests/modeling/test_packed_rows.py")
STEP_TIMES = "step-times.md"
SYSTEM_TOOLKIT = "/usr/local/cuda"
TIMEOUT = 7200  # seconds; a step that hangs must not lose the report
MINUTES = 8.0  # for all that runs
SANITIZER_EXIT_CODE = 86  # what compute-sanitizer returns when it has found something
PACKAGES = ("torch", "triton", "transformers", "numpy", "pytest", "pytest-benchmark", "liger_kernel", "flash_attn")
# In a dry run: some kernel tests (`make test` runs all of them), and a few benchmarks.
QUICK_TESTS = "test_opcheck or test_nothing_is_random or test_bad_arguments"
QUICK_BENCHMARKS = "add_norm-2-way and not compile"
MAIN_BENCHMARKS = "bfloat16-training and not compile"


@dataclass
class Step:
    """One command of the proof."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)  # what is added to it
    skip: str = ""  # why it does not run
    timeout: float = TIMEOUT
    status: str = "not run"  # then "passed", "failed", "skipped", or "stopped" as the time was up
    seconds: float = 0.0
    output: str = ""  # the end of what it printed; all of it is in a log beside the report

    def run(self, log: Path, common: dict[str, str], left: float = math.inf) -> None:
        """Run the command to its end, and end its children with it if it takes too long; `left` seconds at most."""
        if self.skip:
            self.status = "skipped"
            return
        started, limit = time.monotonic(), min(self.timeout, left)
        with open(log, "w+", encoding="utf-8", errors="replace") as file:
            process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**common, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                ending = f"exit code {code}" if code else ""
                self.status = "failed" if code else "passed"
            except subprocess.TimeoutExpired:
                ending = f"stopped after {limit:,.0f} seconds"
                self.status = "stopped" if left < self.timeout else "failed"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            file.seek(0)
            lines = file.read().splitlines()
        self.output = "\n".join([*lines[-TAIL_LINES:], *([ending] if ending else [])])
        self.seconds = time.monotonic() - started


def steps(output: Path, dry_run: bool, text: Sequence[str] = ()) -> list[Step]:
    """Return the proof, what says most first; `text` is what the training steps read, by default the demo corpus."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider"]
    exercise = [python, "-m", "bench.exercise_kernels"]
    benchmarks = output / BENCHMARKS
    step_options = ["--preset", "nano", "--batch-size", "2", "--no-bf16", "--small-text"] if dry_run else []
    compiler = {"TRITON_INTERPRET": "0"}  # the report compiles, and never runs a kernel
    times = [python, "-m", "bench.step_time", "--markdown", str(output / STEP_TIMES)]
    texts = ["--text", *text] if text else []
    times += ["--json", str(output / "step-times.json"), *texts]
    measured = [*pytest, "bench/test_kernels.py", "--benchmark", f"--benchmark-json={benchmarks}", "-k"]
    return [
        Step("trial of the convolutions for Hopper", [python, "-m", "glyphcrm_kernels.conv.trial"], skip=_no_hopper()),
        Step("training steps beside BERT", times, compiler if dry_run else {}),
        Step("host time of a call", [python, "-m", "bench.host_time", "--rounds", "10"], compiler if dry_run else {}),
        Step("tests of recorded steps", [*pytest, *RECORDED_TESTS, "-k", "no_graphs" if dry_run else "gpu"]),
        Step("operations", [*measured, QUICK_BENCHMARKS if dry_run else MAIN_BENCHMARKS]),
        Step("every kernel, indices checked", exercise, {"GLYPHCRM_CHECK_INDICES": "1"}),
        Step(
            "pre-training steps, both backends",
            [python, "-m", "bench.pretraining_step", "--output", str(output / "pretraining"), *(step_options or texts)],
        ),
        *(_sanitizer_step(tool, exercise, dry_run) for tool in ("racecheck", "memcheck", "synccheck")),
        Step("tests on the device", [*pytest, "-m", "not slow", *TESTS, *(["-k", QUICK_TESTS] if dry_run else [])]),
        Step(
            "static report",
            [
                *(python, "-m", "bench.static_report", "--json", str(output / "static-report.json")),
                *("--markdown", str(output / "static-report.md"), *(["--quick"] if dry_run else [])),
            ],
            compiler,
        ),
        Step("benchmarks, each once", [*pytest, "bench/test_kernels.py"]),
        Step("benchmarks", [*measured, QUICK_BENCHMARKS if dry_run else ""]),
    ]


def _no_hopper() -> str:
    """Say why there is nothing to try, or an empty string."""
    from glyphcrm_kernels._shared.gpus import hopper_obstacle

    return hopper_obstacle(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"))


def _sanitizer_step(tool: str, exercise: list[str], dry_run: bool) -> Step:
    sanitizer = find_sanitizer()
    if sanitizer is None:
        skip = (
            "compute-sanitizer is neither in PATH, nor in CUDA_HOME, nor installed by pip (nvidia-cuda-sanitizer-api)"
        )
    elif dry_run or torch.version.hip:
        skip = "there is no NVIDIA GPU"
    else:
        skip = _cannot_start(sanitizer)
    # Imported here: it imports the kernels, which takes seconds.
    from bench.exercise_kernels import kernel_names

    command = [
        *(str(sanitizer or "compute-sanitizer"), "--tool", tool, "--error-exitcode", str(SANITIZER_EXIT_CODE)),
        # Triton starts an assembler, which has no kernels; PyTorch's own are not ours to check.
        *("--target-processes", "application-only"),
        # Some releases of Triton have reductions that racecheck reports although they are sound (triton-lang/triton,
        # issue 7264): look at the line it names before believing one.
        *(("--racecheck-detect-level", "error") if tool == "racecheck" else ()),
        *(word for name in sorted(kernel_names()) for word in ("--kernel-name", f"kns={name}")),
        # PyTorch probes for what may not be there.
        *(("--report-api-errors", "no") if tool == "memcheck" else ()),
        *exercise,
    ]
    # Without PyTorch's pool each tensor is an allocation, whose end is known.
    return Step(f"compute-sanitizer {tool}", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, skip)


def find_sanitizer() -> Path | None:
    """Return where compute-sanitizer is: PATH, the CUDA toolkit, or the pip package."""
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), SYSTEM_TOOLKIT]
    toolkits += (str(path) for folder in sys.path for path in Path(folder, "nvidia").glob("*/"))
    folders = [
        os.path.join(toolkit, name) for toolkit in filter(None, toolkits) for name in ("bin", "compute-sanitizer")
    ]
    name = "compute-sanitizer"
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    return Path(found) if found else None


@cache
def _cannot_start(sanitizer: Path) -> str:
    """Say that it does not even start a program (the pip package's may lack its launcher), or an empty string."""
    command = [str(sanitizer), "--target-processes", "application-only", sys.executable, "-c", "print('started')"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{sanitizer} cannot start a program: {error}"
    if "started" in done.stdout:
        return ""
    return f"{sanitizer} cannot start a program; install the CUDA toolkit's"


def environment() -> dict[str, Any]:
    """Return what the proof ran on."""
    versions: dict[str, Any] = {"python": platform.python_version(), **versions_of(PACKAGES, "not installed")}
    versions |= {"system": platform.platform(), "CUDA of torch": torch.version.cuda, "HIP of torch": torch.version.hip}
    versions["commit"] = first_line("git", "describe", "--always", "--dirty")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        versions |= {
            "GPU": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "GPU memory, GiB": round(properties.total_memory / 2**30, 1),
            "driver": _from_driver("driver_version"),
            "SM clock now and at most": _from_driver("clocks.sm,clocks.max.sm"),
        }
    return versions


def _from_driver(fields: str) -> str:
    return first_line("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def missing_gpu() -> str:
    """Say why the kernels cannot run on a GPU here, or an empty string."""
    if not torch.cuda.is_available():
        return f"there is no GPU that torch {torch.__version__} can use (driver: {_from_driver('driver_version')})"
    from glyphcrm_kernels._shared.gpus import obstacle_on
    from glyphcrm_kernels._shared.targets import target_of

    obstacle = obstacle_on(target_of(torch.device("cuda", 0)))
    return obstacle and f"the kernels {obstacle}"


def prove(proof: Sequence[Step], output: Path, dry_run: bool, minutes: float = math.inf) -> int:
    """Run the steps until the time is up, write the report after each, and return the exit code."""
    output.mkdir(parents=True, exist_ok=True)
    for name in (BENCHMARKS, STEP_TIMES):
        (output / name).unlink(missing_ok=True)  # those of an earlier proof
    # One GPU: several would ask for torchrun.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    common = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "TRITON_INTERPRET": "1" if dry_run else "0"}
    facts, end = environment(), time.monotonic() + 60 * minutes
    for i, step in enumerate(proof, 1):
        left = end - time.monotonic()
        if left <= 0 and not step.skip:
            step.skip = f"the {minutes:g} minutes were over; --minutes allows more"
        print(f"[{i}/{len(proof)}] {step.name} ... ", end="", flush=True)
        try:
            step.run(output / f"{i}-{step.name.replace(',', '').replace(' ', '-')}.log", common, left)
        finally:
            write_report(proof, facts, output, dry_run)
        print(f"skipped: {step.skip}" if step.skip else f"{step.status}, {step.seconds:,.0f} s", flush=True)
    print(f"{verdict(proof, dry_run)}\n{output / 'report.md'}")
    found = {step.status for step in proof}
    return 0 if "passed" in found and found <= {"passed", "skipped"} else 1


def verdict(proof: Sequence[Step], dry_run: bool) -> str:
    """Return the first line of the report."""
    failed, stopped, missing, skipped = (
        [s.name for s in proof if s.status == x] for x in ("failed", "stopped", "not run", "skipped")
    )
    missing = [*stopped, *missing]
    ran = len(proof) - len(missing) - len(skipped)
    if failed:
        text = f"FAILED: {'; '.join(failed)} ({len(failed)} of {ran} steps that ran)"
    elif missing:
        text = f"UNFINISHED: {ran} steps passed, not run to the end: {'; '.join(missing)}"
    else:
        text = f"PASSED: all {ran} steps that ran" if ran else "NOTHING RAN"
    if skipped:
        text += f"; skipped: {'; '.join(skipped)}"
    return f"DRY RUN, no kernel ran on a GPU. {text}" if dry_run else text


def write_report(proof: Sequence[Step], facts: dict[str, Any], output: Path, dry_run: bool) -> None:
    """Write report.json and report.md."""
    head = verdict(proof, dry_run)
    benchmarks = output / BENCHMARKS
    results = read(benchmarks) if benchmarks.exists() else []
    record = {
        "verdict": head,
        "dry_run": dry_run,
        "environment": facts,
        "steps": [asdict(step) for step in proof],
        "benchmarks": [result._asdict() for result in results],
    }
    (output / "report.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")
    lines = [f"# GPU proof of the kernels\n\n**{head}**\n", "| step | status | seconds |", "|---|---|---:|"]
    lines += [
        f"| {s.name} | {s.status}{f': {s.skip}' if s.skip else ''} | {f'{s.seconds:,.0f}' if not s.skip else ''} |"
        for s in proof
    ]
    if (output / STEP_TIMES).exists():
        lines += ["", "## Training steps beside BERT", "", (output / STEP_TIMES).read_text("utf-8").rstrip()]
    if results:
        lines += ["", "## Benchmarks", "", *table(results)]
    lines += ["", "## Environment", "", "| what | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    lines += ["", "## Steps"]
    for s in proof:
        settings = [f"{name}={value}" for name, value in s.environment.items()]
        lines += ["", f"### {s.name}: {s.status}", "", "```", f"$ {shlex.join([*settings, *s.command])}"]
        lines += [*([s.output] if s.output else []), "```"]
    (output / "report.md").write_text("\n".join(lines) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-proof"), help="folder for the report")
    parser.add_argument("--text", nargs="+", default=[], help="files for the training steps; default: the demo corpus")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: everything else that can run")
    parser.add_argument("--only", nargs="+", default=[], help="words, of which a step's name has one; default: all")
    parser.add_argument("--minutes", type=minutes_of, help=f"time for all; default: {MINUTES:g}, in a dry run no limit")
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # before the kernels are imported; the steps of a dry run get it back
    if not options.dry_run and (missing := missing_gpu()):
        print(f"error: {missing}; --dry-run runs what can run without", file=sys.stderr)
        return 2
    if options.text:
        expand(options.text)  # what is not there is told now
    # Steps run in the folder of the project, wherever they are asked for.
    text = [word if is_url(word) or word.startswith(PREFIX) else os.path.abspath(word) for word in options.text]
    output = options.output.resolve()
    proof = steps(output, options.dry_run, text)
    chosen = [step for step in proof if not options.only or any(word in step.name for word in options.only)]
    if not chosen:
        parser.error(
            f"no step has one of these words: {' '.join(options.only)}; there are {', '.join(s.name for s in proof)}"
        )
    minutes = options.minutes or (math.inf if options.dry_run else MINUTES)
    return prove(chosen, output, options.dry_run, minutes)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
