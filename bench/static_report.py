"""The static report: compiles every kernel launch ahead of time and holds it to its budgets. Needs no GPU.

    python -m bench.static_report [--quick] [--only WORDS] [--json FILE] [--markdown FILE] [--sass WORDS]

WORDS select launches: each word has to be in "<launch> <dtype> <target>", for example
`--sass "9x9, 64, 48 fwd bfloat16 sm_90"`, which prints the machine code.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from glyphcrm_kernels._shared.gpus import HOPPER, gluon_obstacle
from glyphcrm_kernels._shared.launch import Launch, intercepted
from glyphcrm_kernels._shared.optional_triton import INTERPRETED
from glyphcrm_kernels._shared.targets import Target, pretend
from glyphcrm_kernels.registry import OPS
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.runtime.jit import create_function_from_signature

from bench import markdown
from bench.arguments import new_file
from bench.cases import BASE, DROPOUT, Case, Draw, all_cases

KIB = 1024
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# As in a pre-training batch, but with fewer tokens and characters, whose numbers do not change the code.
SIZES = replace(BASE, sequences=1, images=100, rows=100, atlas_rows=200)
CHANNELS = ((64, 128), (32, 64), (16, 128), (16, 32))  # of "base", "small" and "tiny", and of the shipped model
ELEMENT_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}
# Above this a tile of floating-point numbers has to move 16 bytes a thread; below are biases and
# statistics. Integers are indices, packed bits and winners of windows: never the bulk of a kernel.
STREAMING_TILE_BYTES = 1 * KIB


class Chip(NamedTuple):
    """Bytes of shared memory that a program can have, and that a streaming access of a thread should move."""

    shared: int
    access: int


# Sources: CUDA C++ Programming Guide, "Compute Capabilities"; AMD CDNA 3 ISA. AMD's compiler stores accumulators
# straight from the registers, where a thread holds four neighbours: 8 bytes.
CHIPS = {
    Target("cuda", 80): Chip(163 * KIB, access=16),
    Target("cuda", 90): Chip(227 * KIB, access=16),
    Target("cuda", 100): Chip(227 * KIB, access=16),
    Target("hip", "gfx942"): Chip(64 * KIB, access=8),
}

# In PTX, and in LLVM's assembly for AMD GPUs, `.loc` says from which line and column the code below it comes.
LOCATION = re.compile(r"\.loc\s+\d+\s+(\d+)\s+(\d+)")
PTX_ACCESS = re.compile(
    r"\b(ld|st)\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.b(\d+)\b|\bcp\.async\.c[ag]\.shared\.global .*, 0x(\w+)"
)
GCN_ACCESS = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(?:\w+_)?(dwordx\d|dword|short|ushort|byte|ubyte)")
GCN_BYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2}
ATOMIC = re.compile(r"\b(?:atom|red)\.[\w.:]*global|\b(?:global|buffer|flat)_atomic_")
MATRIX = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_s?mfma)")

Widths = dict[tuple[str, int, int], set[int]]  # bytes a thread, by "load" or "store", line and column


@dataclass(frozen=True)
class Compiled:
    """One launch, compiled; what the report and the tests need, as JSON takes it."""

    kernel: str
    target: str
    warps: int
    registers: int  # a thread; on AMD, vector registers, accumulation registers included
    stack_bytes: int  # a thread, spilled registers included
    shared_bytes: int  # a program
    dots: int  # `tl.dot` in the source, after inlining and unrolling
    matrix: dict[str, int]  # instructions that run on tensor cores (matrix cores), by name
    loads: dict[int, int]  # global ones, by bytes a thread
    stores: dict[int, int]
    violations: list[str]
    launch: str = ""
    dtype: str = ""


def target_name(target: Target) -> str:
    """Return "sm_90" or "gfx942"."""
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


# Compiling ------------------------------------------------------------------------------------------


def compile_ahead(launch: Launch, target: Target) -> Any:
    """Return what Triton compiles `launch` to for a GPU of that kind.

    Triton's own binder derives the signature from the arguments, so integers are specialised as in a real launch.
    Results come from Triton's cache (TRITON_CACHE_DIR) if they are there.
    """
    kernel = launch.kernel
    gpu = GPUTarget(target.backend, target.arch, 64 if target.backend == "hip" else 32)
    backend: Any = make_backend(gpu)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**launch.arguments, **launch.constants, **options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
    form = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    source = form(kernel, signature, constants, attributes)
    return triton.compile(source, target=gpu, options=parsed.__dict__)


def examine(launch: Launch, target: Target) -> Compiled:
    """Compile a launch and hold it to the budgets that every kernel has to keep."""
    result = compile_ahead(launch, target)
    chip, ttgir = CHIPS[target], result.asm["ttgir"]
    if target.backend == "hip":
        code = result.asm["amdgcn"].partition("s_code_end")[0]
        registers = _number(r"\.vgpr_count:\s+(\d+)", result.asm["amdgcn"])
        stack = _number(r"\.private_segment_fixed_size:\s+(\d+)", result.asm["amdgcn"])
    else:
        code, usage = result.asm["ptx"], _resource_usage(result.asm["cubin"])
        registers, stack = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
    widths, counts = _accesses(code)
    # Gluon's code begins with ttgir, and its products are asynchronous.
    dots = len(re.findall(r"\btt\.dot(?:_scaled)? |\bttng\.warp_group_dot ", result.asm.get("ttir", ttgir)))
    # An encoding with a name of its own that begins with "mma" is a tensor core's.
    scalar_dots = len(re.findall(r"\btt\.dot .*-> tensor<[^>]*, #(?!mma)", ttgir))
    matrix, shared = Counter(MATRIX.findall(code)), result.metadata.shared
    budgets = {
        f"{stack} bytes of stack a thread: registers are spilled": stack,
        f"{shared} bytes of shared memory; the chip gives a program {chip.shared}": shared > chip.shared,
        f"{scalar_dots} dots run without tensor cores": scalar_dots,
        "no tensor-core instruction, but tl.dot": dots and not matrix,
        "atomic operations on global memory: results would depend on the order of programs": ATOMIC.search(code),
    }
    violations = [said for said, broken in budgets.items() if broken] + _narrow_accesses(ttgir, widths, chip.access)
    warps = re.search(r'"ttg\.total-num-warps" = (\d+)', ttgir)
    return Compiled(
        kernel=launch.kernel.__name__,
        target=target_name(target),
        warps=int(warps[1]) if warps else launch.num_warps,
        registers=registers,
        stack_bytes=stack,
        shared_bytes=shared,
        dots=dots,
        matrix=dict(matrix),
        loads=counts["load"],
        stores=counts["store"],
        violations=violations,
    )


def _resource_usage(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiler's output has no {pattern}")
    return int(match[1])


def _accesses(code: str) -> tuple[Widths, dict[str, dict[int, int]]]:
    """Return the widths of global loads and stores by place, and how many there are of each."""
    widths: Widths = {}
    counts: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    place, assembly, placed = (0, 0), False, False
    for row in code.splitlines():
        if "inline asm" in row:
            assembly, placed = "begin" in row, False
            continue
        if match := LOCATION.search(row):
            if not (assembly and placed):  # each further line of inline assembly has a number of its own
                place, placed = (int(match[1]), int(match[2])), True
            continue
        if match := PTX_ACCESS.search(row):
            name, vector, bits, copied = match.groups()
            kind = "store" if name == "st" else "load"
            width = int(copied, 16) if copied else int(vector or 1) * int(bits) // 8
        elif match := GCN_ACCESS.search(row):
            kind, width = match[1], GCN_BYTES.get(match[2], 1)
        else:
            continue
        widths.setdefault((kind, *place), set()).add(width)
        counts[kind][width] += 1
    return widths, {kind: dict(sorted(found.items(), reverse=True)) for kind, found in counts.items()}


def _narrow_accesses(ttgir: str, widths: Widths, wanted: int) -> list[str]:
    """Return, as text, the streaming accesses that move fewer than `wanted` bytes a thread.

    Triton's intermediate code knows the tiles, later stages the widths; lines and columns of the source join them.
    """
    operation = re.compile(
        r"(tt\.load|tt\.store|ttg\.async_copy_global_to_local|\w+\.buffer_(?:load|store)\w*) "
        r".*tensor<((?:\d+x)+)(?:!tt\.ptr<)?(\w+).*loc\((#loc\d*)\)$"
    )
    locations = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttgir, re.MULTILINE))
    found = set()
    for match in filter(None, map(operation.search, ttgir.splitlines())):
        size = prod(int(n) for n in match[2].split("x")[:-1]) * ELEMENT_BYTES.get(match[3], 0)
        if size <= STREAMING_TILE_BYTES:
            continue
        text, kind = locations[match[4]], "store" if "store" in match[1] else "load"
        while not (place := re.match(r'"(.+)":(\d+):(\d+)$', text)):  # of an inlined function, the place inside it
            text = locations[re.findall(r"#loc\d*", text)[0]]
        line, column = int(place[2]), int(place[3])
        narrowest = min(widths.get((kind, line, column), {0}))
        if narrowest < wanted:
            what = f"{narrowest}-byte {kind}" if narrowest else f"no instruction found for the {kind}"
            found.add(f"{what} of a tile of {size} bytes at {Path(place[1]).name}:{line}:{column}")
    return sorted(found)


# The launches ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One launch to compile; `launch` names the op, its sizes and "forward", "backward" or "inference"."""

    launch: str
    dtype: str
    target: Target
    what: Launch

    @property
    def label(self) -> str:
        """What `--only` and `--sass` select by."""
        return f"{self.launch} {self.what.kernel.__name__} {self.dtype} {target_name(self.target)}"


def jobs(quick: bool = False, only: str = "") -> list[Job]:
    """Return what to compile: what the ops launch, each signature of a kernel once.

    The quick report has every kernel, but fewer sizes and no float16, whose code differs little from bfloat16's.
    """
    found: dict[str, Job] = {}
    for target, (c1, c2), dtype in itertools.product(CHIPS, CHANNELS[: 1 if quick else None], DTYPES[quick:]):
        for case in all_cases(replace(SIZES, c1=c1, c2=c2)):
            if OPS[case.op].kernel_names and (case.quick or not quick):
                for phase, launch in _launches(case, target, dtype, inference=case.drops and not quick):
                    job = Job(f"{case.op} {case.size}, {phase}", str(dtype).removeprefix("torch."), target, launch)
                    # What is compiled for a case and its inference, say, is the same but for dropout.
                    found.setdefault(f"{job.dtype} {target} {launch.num_warps} {_signature(launch)}", job)
    return [job for job in found.values() if all(word in job.label for word in only.split())]


def _launches(case: Case, target: Target, dtype: torch.dtype, inference: bool) -> Iterator[tuple[str, Launch]]:
    """Yield what a case launches; its tensors are never written, as none of the kernels runs."""
    inputs, ways = case.draw(Draw(dtype, numbers=torch.empty)), OPS[case.op].implementations
    compiled = ["triton"]
    if target == HOPPER and "hopper" in ways and not gluon_obstacle():
        compiled.append("hopper")
    anywhere = {name: ways[name]._replace(obstacle=lambda *_: "") for name in compiled}
    for name in compiled:
        launched: list[Launch] = []
        with mock.patch.dict(ways, anywhere), pretend(target), intercepted(launched.append):
            trained = case.differentiable(inputs, True)
            outputs = case.run(name, trained, DROPOUT)
            yield from (("forward", launch) for launch in launched)
            launched.clear()
            torch.autograd.grad(outputs, case.leaves(trained), [torch.empty_like(t) for t in outputs])
            yield from (("backward", launch) for launch in launched)
            launched.clear()
            if inference:
                case.run(name, inputs, 0.0)
                yield from (("inference", launch) for launch in launched)


def _signature(launch: Launch) -> str:
    """Return what decides how a launch is compiled."""
    kinds = {name: getattr(value, "dtype", value) for name, value in launch.arguments.items()}
    return f"{launch.kernel.__name__} {kinds} {launch.constants} {launch.num_stages}"


def compile_all(wanted: Sequence[Job]) -> list[Compiled]:
    """Compile on all cores, in the order of the jobs."""
    global _wanted
    _wanted = wanted
    # Forked workers have the launches, which do not pickle.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=multiprocessing.get_context("fork")) as pool:
        return list(tqdm(pool.map(_compile, range(len(wanted))), total=len(wanted), desc="compiling", disable=None))


_wanted: Sequence[Job] = ()


def _compile(number: int) -> Compiled:
    job = _wanted[number]
    return replace(examine(job.what, job.target), launch=job.launch, dtype=job.dtype)


# The text -------------------------------------------------------------------------------------------


def report(compiled: Sequence[Compiled]) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# Static kernel report (triton {triton.__version__}, no GPU used)",
        "",
        "Loads and stores: instructions by bytes a thread (`16x12` = twelve of 16 bytes).",
    ]
    header = ["launch", "kernel", "dtype", "warps", "registers", "stack B", "shared KiB", "dots", "tensor cores"]
    for target, chip in CHIPS.items():
        rows = [_row(c) for c in compiled if c.target == target_name(target)]
        if rows:
            title = f"## {target_name(target)} (at most {chip.shared // KIB} KiB of shared memory a program)"
            lines += ["", title, "", *markdown.table([*header, "loads", "stores"], rows, left=3)]
    broken = [f"- {c.launch} {c.kernel} {c.dtype} {c.target}: {found}" for c in compiled for found in c.violations]
    return "\n".join([*lines, "", "## Broken budgets", "", *(broken or ["None."])]) + "\n"


def _row(c: Compiled) -> list[str]:
    numbers = [c.warps, c.registers, c.stack_bytes, f"{c.shared_bytes / KIB:.1f}", c.dots]
    counts = (" ".join(f"{width}x{count}" for width, count in kind.items()) for kind in (c.matrix, c.loads, c.stores))
    return [c.launch, c.kernel, c.dtype, *map(str, numbers), *(count or "-" for count in counts)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.static_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and no float16, but every kernel and target")
    parser.add_argument("--only", metavar="WORDS", default="", help="only launches whose label has all these words")
    parser.add_argument("--json", metavar="FILE", type=new_file, help="write the numbers here, too")
    parser.add_argument("--markdown", metavar="FILE", type=new_file, help="write the report here, too")
    parser.add_argument("--sass", metavar="WORDS", help="print the machine code of such launches, and nothing else")
    arguments = parser.parse_args()
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set; unset it, as the interpreter compiles nothing")
    words = arguments.only if arguments.sass is None else arguments.sass
    wanted = jobs(arguments.quick, words)
    if not wanted:
        parser.error(f"no launch has all of {words.split()} in its name; names are like {jobs(True)[0].label!r}")
    if arguments.sass is not None:
        for job in wanted:
            code = compile_ahead(job.what, job.target).asm
            print(f"# {job.label}", code["amdgcn" if job.target.backend == "hip" else "sass"], sep="\n")
        return
    compiled = compile_all(wanted)
    text = report(compiled)
    print(text, end="")
    if arguments.json:
        launches = [asdict(c) for c in compiled]
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "launches": launches}, indent=1))
    if arguments.markdown:
        arguments.markdown.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
