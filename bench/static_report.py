"""The static report: what the compiler makes of every kernel, and what follows for its speed. Needs no GPU.

    python -m bench.static_report [--quick] [--only WORDS] [--json FILE] [--markdown FILE]
    python -m bench.static_report --sass WORDS

WORDS select launches: each word has to be in "<launch> <dtype> <target>", for example
`--sass "9x9 64, bfloat16 sm_90"`, which prints the innermost loop's machine code.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from glyphcrm_kernels._triton import INTERPRETED
from glyphcrm_kernels.launch import Target
from tqdm import tqdm

from bench.ahead_of_time import CHIPS, KIB, Compiled, compile_ahead, target_name
from bench.catalogue import CASES, DTYPES, NINE_BY_NINE, Case
from bench.machine_code import Loop

WARP = 32


@dataclass(frozen=True)
class Gpu:
    """Peak rates in TFLOP/s and TB/s, from NVIDIA's data sheets (dense)."""

    name: str
    half: float
    tf32: float
    fp32: float
    memory: float


A100 = Gpu("A100 80GB SXM", 312, 156, 19.5, 2.04)
H100 = Gpu("H100 SXM", 989, 494, 67, 3.35)

# What a multiprocessor of an H100 does in a cycle. The L2 rate is an estimate from published
# microbenchmarks (about 5.5 TB/s for the chip, 132 multiprocessors, 1.755 GHz); NVIDIA names none.
H100_TENSOR_FLOPS = 4096  # bf16 or fp16, dense; half as many in tf32
H100_SHARED_BYTES = 128
H100_L2_TB = 5.5
H100_L2_BYTES = H100_L2_TB * 1e12 / 132 / 1.755e9
SCHEDULERS = 4


@dataclass(frozen=True)
class Job:
    """One launch to compile."""

    case: Case
    dtype: torch.dtype
    target: Target

    @property
    def label(self) -> str:
        """ "<launch> <dtype> <target>", what `--only` and `--sass` select by."""
        return f"{self.case.name} {_dtype_name(self.dtype)} {target_name(self.target)}"

    def compile(self) -> Compiled:
        return compile_ahead(self.case.launch(self.target, self.dtype), self.target)


def jobs(quick: bool = False, only: str = "") -> list[Job]:
    """Return what to compile: every case, dtype and target, or those that `only` selects.

    The quick report leaves out sizes, and float16, whose code differs from bfloat16's by few registers.
    """
    dtypes = [dtype for dtype in DTYPES if not quick or dtype != torch.float16]
    cases = [case for case in CASES if not quick or case.quick]
    everything = [Job(case, dtype, target) for target in CHIPS for case in cases for dtype in dtypes]
    return [job for job in everything if all(word in job.label for word in only.split())]


def compile_all(wanted: Sequence[Job]) -> list[dict[str, Any]]:
    """Compile on all cores and return one record for each job, in their order."""
    cores = len(os.sched_getaffinity(0))
    # Forked workers need not import torch again; nothing has started a thread yet.
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("fork")) as pool:
        done = pool.map(_record, [job.label for job in wanted])  # a case holds functions, which do not pickle
        progress = tqdm(done, total=len(wanted), desc="compiling", disable=None)
        return list(progress)


def _record(label: str) -> dict[str, Any]:
    """Compile the job of that label and return what the report and the tests need, as JSON takes it."""
    job = next(job for job in jobs() if job.label == label)
    launch = job.case.launch(job.target, job.dtype)
    compiled = compile_ahead(launch, job.target)
    return {
        "launch": job.case.name,
        "dtype": _dtype_name(job.dtype),
        "target": target_name(job.target),
        "kernel": compiled.kernel,
        "warps": compiled.warps,
        "registers": compiled.registers,
        "stack_bytes": compiled.stack,
        "spill_instructions": compiled.spills,
        "shared_bytes": compiled.shared,
        "programs_per_multiprocessor": compiled.programs,
        "occupancy": compiled.occupancy,
        "dots": compiled.dots,
        "dot_shape": compiled.dot_shape,
        "scalar_dots": compiled.scalar_dots,
        "tensor_opcodes": dict(compiled.tensor_opcodes),
        "load_widths": compiled.widths("load"),
        "store_widths": compiled.widths("store"),
        "hot_loop": _loop_record(compiled.hot_loop) if compiled.hot_loop else None,
        "bytes": job.case.bytes_moved(launch),
        "flops": job.case.flops,
        "violations": compiled.violations(),
    }


def _loop_record(loop: Loop) -> dict[str, Any]:
    loads = [i.access for i in loop.instructions if i.access and i.access.kind == "load"]
    matrix = [i for i in loop.instructions if i.is_tensor]
    kinds = ("tensor", "global memory", "shared memory", "wait", "branch", "float", "integer")
    return {
        "issued": loop.issued,
        "kinds": {kind: loop.count(kind) for kind in kinds},
        "tensor_opcodes": sorted({i.opcode for i in matrix}),
        "tensor_flops": sum(i.tensor_flops for i in matrix),
        "operand_bytes": sum(i.tensor_operand_bytes for i in matrix),
        "load_bytes_per_thread": sum(a.width for a in loads),
        "load_bytes_per_thread_past_l1": sum(a.width for a in loads if a.bypasses_l1),
        "load_opcodes": sorted({i.opcode for i in loop.instructions if i.access and i.access.kind == "load"}),
        "barriers": sum(i.opcode.startswith(("BAR.", "s_barrier")) for i in loop.instructions),
    }


# The text -------------------------------------------------------------------------------------------


def report(records: Sequence[dict[str, Any]]) -> str:
    """Return the report as Markdown whose tables are aligned, so that it reads well in a terminal."""
    lines = [
        f"# Static kernel report (triton {triton.__version__}, no GPU used)",
        "",
        "Loads and stores: instructions by bytes a thread (`16x12` = twelve of 16 bytes; `bulk` = the TMA unit).",
        "Tensor cores: instructions in the innermost loop, of all instructions there, and in the whole kernel.",
        "Occupancy: resident warps as a share of what the chip holds, by registers, shared memory and warps.",
    ]
    for target in CHIPS:
        of_target = [r for r in records if r["target"] == target_name(target)]
        if of_target:
            shared = CHIPS[target].shared_program // KIB
            lines += ["", f"## {target_name(target)} (at most {shared} KiB of shared memory a program)", ""]
            lines += _table([_compiled_row(r) for r in of_target])
    lines += ["", "## Roofline", "", *_roofline(records)]
    broken = [f"- {_label(r)}: {violation}" for r in records for violation in r["violations"]]
    lines += ["", "## Broken budgets", "", *(broken or ["None."])]
    for r in records:
        if (r["launch"], r["dtype"], r["target"]) == (NINE_BY_NINE, "bfloat16", "sm_90"):
            lines += ["", "## What bounds the 9x9 convolution on sm_90", "", *_bound_of_convolution(r)]
    return "\n".join(lines) + "\n"


def _compiled_row(r: dict[str, Any]) -> dict[str, str]:
    loop = r["hot_loop"]
    if r["tensor_opcodes"]:
        main = max(r["tensor_opcodes"], key=r["tensor_opcodes"].get)
        inner = f"{loop['kinds']['tensor']} of {loop['issued']}" if loop else "no loop"
        tensor = f"{main}: {inner}, {sum(r['tensor_opcodes'].values())} in all"
    else:
        tensor = "-"
    return {
        "launch": r["launch"],
        "dtype": r["dtype"],
        "warps": str(r["warps"]),
        "registers": str(r["registers"]),
        "spills": str(r["spill_instructions"]),
        "stack B": str(r["stack_bytes"]),
        "shared KiB": f"{r['shared_bytes'] / KIB:.1f}",
        "occupancy": f"{r['occupancy']:.0%}",
        "dots": str(r["dots"]),
        "tensor cores": tensor,
        "loads": _widths(r["load_widths"]),
        "stores": _widths(r["store_widths"]),
    }


def _widths(widths: dict[int | str, int]) -> str:
    return " ".join(f"{width if int(width) else 'bulk'}x{count}" for width, count in widths.items()) or "-"


def _roofline(records: Iterable[dict[str, Any]]) -> list[str]:
    """Return the section on the least time that bytes and arithmetic allow."""
    seen = {(r["launch"], r["dtype"]): r for r in records}
    rows = []
    for r in seen.values():
        row = {
            "launch": r["launch"],
            "dtype": r["dtype"],
            "MB": f"{r['bytes'] / 1e6:,.1f}",
            "GFLOP": f"{r['flops'] / 1e9:,.2f}",
        }
        for gpu in (A100, H100):
            microseconds, bound = roofline(r, gpu)
            row[gpu.name] = f"{microseconds:,.1f} µs, {bound}"
        rows.append(row)
    rates = "; ".join(
        f"{gpu.name}: {gpu.half:g} (16 bits), {gpu.tf32:g} (tf32), {gpu.fp32:g} (fp32 without tensor cores) TFLOP/s, "
        f"{gpu.memory:g} TB/s"
        for gpu in (A100, H100)
    )
    return [
        "The least time of a launch: each tensor moved once, only the arithmetic that the result needs, both at peak.",
        f"{rates}.",
        "A float32 dot is three tf32 products (tf32x3), so its peak is a third of tf32's.",
        "",
        *_table(rows),
    ]


def roofline(record: dict[str, Any], gpu: Gpu) -> tuple[float, str]:
    """Return the least time in microseconds, and "memory" or "arithmetic" for what sets it."""
    peak = gpu.tf32 / 3 if record["dtype"] == "float32" else gpu.half
    if not record["dots"]:
        peak = gpu.fp32
    memory, arithmetic = record["bytes"] / gpu.memory / 1e6, record["flops"] / peak / 1e6
    return max((memory, "memory"), (arithmetic, "arithmetic"))


def _bound_of_convolution(r: dict[str, Any]) -> list[str]:
    """Return the section on the 9x9 kernel's innermost loop: cycles that each unit of a multiprocessor needs."""
    loop, warps = r["hot_loop"], r["warps"]
    flops = loop["tensor_flops"] * warps // 4  # four warps issue one HGMMA together
    operands = loop["operand_bytes"] * warps // 4
    # Where the loop is unrolled, the copies that the pipeline masks off at its end are in the code, too.
    m, n, k = r["dot_shape"]
    static = loop["load_bytes_per_thread"] * warps * WARP
    loaded = min(static, flops // (2 * m * n * k) * (m + n) * k * 2)
    past_l1 = loaded * loop["load_bytes_per_thread_past_l1"] // loop["load_bytes_per_thread"]
    units = {
        "tensor cores": (flops / H100_TENSOR_FLOPS, f"{flops:,} FLOP at {H100_TENSOR_FLOPS:,}"),
        "L2 to multiprocessor": (
            past_l1 / H100_L2_BYTES,
            f"{past_l1:,} bytes past L1 at {H100_L2_BYTES:.1f} (estimate)",
        ),
        "L1 and shared memory": (
            (operands + 2 * loaded - past_l1) / H100_SHARED_BYTES,
            f"{operands:,} bytes read by HGMMA, {loaded:,} written by copies, {loaded - past_l1:,} of them "
            f"read through L1, at {H100_SHARED_BYTES}",
        ),
        "instruction issue": (
            loop["issued"] * warps / SCHEDULERS,
            f"{loop['issued']:,} a warp, {warps} warps, {SCHEDULERS} schedulers",
        ),
    }
    rows = [{"unit": unit, "cycles": f"{cycles:,.0f}", "from": source} for unit, (cycles, source) in units.items()]
    kinds, matrix = loop["kinds"], loop["kinds"]["tensor"]
    slowest = max(units, key=lambda unit: units[unit][0])
    share = units["tensor cores"][0] / units[slowest][0]
    lines = [
        f"{r['launch']}, bfloat16. One turn of the innermost loop of a program of {warps} warps; "
        f"{r['programs_per_multiprocessor']} programs share a multiprocessor, so times add up but waits overlap.",
        "",
        *_table(rows),
        "",
        f"- {matrix} {', '.join(loop['tensor_opcodes'])} in {loop['issued']:,} instructions; for each, "
        f"{kinds['integer'] / matrix:.1f} integer instructions (addresses, masks, copies), "
        f"{kinds['global memory'] / matrix:.1f} of global memory, {kinds['wait'] / matrix:.1f} that wait or order.",
        f"- Loads: {', '.join(loop['load_opcodes'])}; {flops / loaded:.1f} FLOP for each byte loaded.",
        f"- {loop['barriers']} barriers across the program in {matrix} HGMMA.",
    ]
    if slowest == "tensor cores":
        lines.append("- The tensor cores set the pace; every other unit has time to spare.")
    else:
        lines.append(
            f"- The pace is set by: {slowest}. The tensor cores can be busy {share:.0%} of the time at most, "
            f"which is {share * H100.half:,.0f} TFLOP/s."
        )
    if past_l1:
        lines.append(
            f"- The rate of L2 ({H100_L2_TB} TB/s for the chip) is an estimate from microbenchmarks. "
            "LDGSTS.BYPASS goes past L1, so what it reads comes from L2 each time."
        )
    if past_l1 < loaded:
        lines.append(
            "- What goes through L1 and is not found there comes from L2, too; how much that is, no compiler knows."
        )
    return lines


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return Markdown lines with columns of one width; numbers stand to the right."""
    header = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in header]
    numeric = [all(row[name][:1].isdigit() and " " not in row[name] for row in rows) for name in header]

    def line(cells: Iterable[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + ":" if right else "-" * (w + 2) for w, right in zip(widths, numeric, strict=True))
    return [line(header), f"|{rule}|", *(line(row.values()) for row in rows)]


def _label(r: dict[str, Any]) -> str:
    return f"{r['launch']} {r['dtype']} {r['target']}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _print_sass(words: str) -> None:
    for job in jobs(only=words):
        loop = job.compile().hot_loop
        print(f"# {job.label}: " + (f"{loop.issued} instructions in the innermost loop" if loop else "no loop"))
        for instruction in loop.instructions if loop else ():
            print(f"{instruction!s:<80} # {instruction.file}:{instruction.line}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.static_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and no float16, but every kernel and target")
    parser.add_argument("--only", metavar="WORDS", default="", help="only launches whose label has all these words")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers here, too")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the report here, too")
    parser.add_argument("--sass", metavar="WORDS", help="print the innermost loop's machine code, and nothing else")
    arguments = parser.parse_args()
    if INTERPRETED:
        sys.exit("error: TRITON_INTERPRET is set; unset it, as the interpreter compiles nothing")
    words = arguments.only if arguments.sass is None else arguments.sass
    wanted = jobs(arguments.quick, words)
    if not wanted:
        sys.exit(f"error: no launch has all of {words.split()} in its name; names are like {jobs()[0].label!r}")
    if arguments.sass is not None:
        _print_sass(arguments.sass)
        return
    records = compile_all(wanted)
    text = report(records)
    print(text, end="")
    if arguments.json:
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "launches": records}, indent=1))
    if arguments.markdown:
        arguments.markdown.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
