"""Compiles a kernel launch for a GPU that is not there, and reads what the compiler made of it.

Works only where `TRITON_INTERPRET` is not set: with it, `triton.jit` gives nothing to compile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import triton
from glyphcrm_kernels.launch import Launch, Target
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from bench.machine_code import Loop, Program

KIB = 1024
ELEMENT_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}
# Above this a tile of floating-point numbers has to move 16 bytes a thread; below are biases and
# statistics. Integers are indices, packed bits and winners of windows: never the bulk of a kernel.
STREAMING_TILE_BYTES = 1 * KIB


@dataclass(frozen=True)
class Chip:
    """What a multiprocessor (AMD: compute unit) has, and how it is handed out.

    Sources: CUDA C++ Programming Guide, "Compute Capabilities"; AMD CDNA 3 ISA; LLVM's AMDGPU backend.
    """

    warps: int  # that can be resident
    programs: int  # that can be resident
    shared: int  # bytes
    shared_program: int  # bytes that one program can have
    shared_reserved: int  # bytes that the system takes for each program
    access: int  # bytes that a streaming access of a thread should have
    tensor_memory: int = 0  # columns


# A wave of AMD's 64 threads counts as a warp. Its compiler stores accumulators straight from the
# registers, where a thread holds four neighbours: 8 bytes.
CHIPS = {
    Target("cuda", 80): Chip(64, 32, 164 * KIB, 163 * KIB, 1 * KIB, access=16),
    Target("cuda", 90): Chip(64, 32, 228 * KIB, 227 * KIB, 1 * KIB, access=16),
    Target("cuda", 100): Chip(64, 32, 228 * KIB, 227 * KIB, 1 * KIB, access=16, tensor_memory=512),
    Target("hip", "gfx942"): Chip(32, 16, 64 * KIB, 64 * KIB, 0, access=8),
}


def target_name(target: Target) -> str:
    """Return "sm_90" or "gfx942"."""
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


@dataclass(frozen=True)
class Compiled:
    """One launch, compiled.

    Attributes:
        registers: a thread; on AMD, vector registers, accumulation registers included.
        stack: bytes a thread, spilled registers included.
        spills: instructions that move registers to or from local memory.
        shared: bytes a program.
        programs: that fit on a multiprocessor at a time.
        dots: `tl.dot` in the source, after inlining and unrolling.
        dot_shape: (M, N, K) of the first of them.
        scalar_dots: of the products that the compiler made of them, those that run without tensor cores.
        narrow: streaming accesses of fewer bytes a thread than `Chip.access`, with their source lines.
    """

    kernel: str
    target: Target
    warps: int
    registers: int
    stack: int
    spills: int
    shared: int
    programs: int
    dots: int
    dot_shape: tuple[int, int, int] | None
    scalar_dots: int
    narrow: tuple[str, ...]
    program: Program

    @property
    def occupancy(self) -> float:
        """Resident warps, as a share of what the chip can hold."""
        return self.programs * self.warps / CHIPS[self.target].warps

    @property
    def tensor_opcodes(self) -> Counter[str]:
        """How many tensor-core instructions there are, by opcode."""
        return Counter(i.opcode for i in self.program.instructions if i.is_tensor)

    @property
    def hot_loop(self) -> Loop | None:
        """The innermost loop where the work is: most tensor-core instructions, then most instructions."""
        inner = [loop for loop in self.program.loops if loop.innermost]
        return max(inner, key=lambda loop: (loop.count("tensor"), loop.issued), default=None)

    def widths(self, kind: str) -> dict[int, int]:
        """Return how many global "load"s, "store"s or "atomic"s there are, by bytes a thread (0: bulk copies)."""
        accesses = [i.access for i in self.program.instructions]
        return dict(sorted(Counter(a.width for a in accesses if a and a.kind == kind).items(), reverse=True))

    def violations(self) -> list[str]:
        """Return what breaks the budgets that every kernel has to keep."""
        chip = CHIPS[self.target]
        found = []
        if self.spills:
            found.append(f"{self.spills} instructions spill registers")
        if self.stack:
            found.append(f"{self.stack} bytes of stack")
        if self.shared > chip.shared_program:
            found.append(f"{self.shared} bytes of shared memory; the chip gives a program {chip.shared_program}")
        if not self.programs:
            found.append("not one program fits on a multiprocessor")
        if self.scalar_dots:
            found.append(f"{self.scalar_dots} dots run without tensor cores")
        if self.dots and not self.tensor_opcodes:
            found.append("no tensor-core instruction, but tl.dot")
        if self.widths("atomic"):
            found.append("atomic operations on global memory: results would depend on the order of programs")
        return found + list(self.narrow)


def compile_ahead(launch: Launch, target: Target) -> Compiled:
    """Compile `launch` (tensors may be on the meta device) as Triton would on a GPU of that kind.

    Triton's own binder derives the signature from the arguments, so integers that are 1, divisible by
    16 or too large for 32 bits are specialised as in a real launch. Results come from Triton's cache
    (TRITON_CACHE_DIR) if they are there.
    """
    kernel = launch.kernel
    gpu = GPUTarget(target.backend, target.arch, 64 if target.backend == "hip" else 32)
    backend: Any = make_backend(gpu)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**launch.arguments, **launch.constants, **options)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
    source = ASTSource(kernel, signature, constants, attributes)
    result = triton.compile(source, target=gpu, options=parsed.__dict__)

    if target.backend == "hip":
        text = result.asm["amdgcn"]
        program = Program.from_gcn(text)
        registers, stack = (
            _number(r"\.vgpr_count:\s+(\d+)", text),
            _number(r"\.private_segment_fixed_size:\s+(\d+)", text),
        )
        widths = _widths_in_program(program)
    else:
        usage, text = _disassemble(result.asm["cubin"])
        program = Program.from_sass(text)
        registers, stack = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
        widths = _widths_in_llvm(result.asm["llir"])
    ttgir = result.asm["ttgir"]
    warps = _number(r'"ttg\.total-num-warps" = (\d+)', ttgir, launch.num_warps)
    tensor_memory = getattr(result.metadata, "tmem_size", 0)
    shared = result.metadata.shared
    return Compiled(
        kernel=kernel.__name__,
        target=target,
        warps=warps,
        registers=registers,
        stack=stack,
        spills=sum(i.is_spill for i in program.instructions),
        shared=shared,
        programs=resident_programs(target, registers, shared, warps, tensor_memory),
        dots=len(re.findall(r"\btt\.dot(?:_scaled)? ", result.asm["ttir"])),
        dot_shape=_dot_shape(result.asm["ttir"]),
        # An encoding with a name of its own that begins with "mma" is a tensor core's.
        scalar_dots=len(re.findall(r"\btt\.dot .*-> tensor<[^>]*, #(?!mma)", ttgir)),
        narrow=tuple(_narrow_accesses(ttgir, widths, CHIPS[target].access)),
        program=program,
    )


def resident_programs(target: Target, registers: int, shared: int, warps: int, tensor_memory: int = 0) -> int:
    """Return how many programs a multiprocessor of `target` can hold at a time."""
    chip = CHIPS[target]
    if target.backend == "hip":
        # 512 registers a thread for each of 4 SIMDs, handed out in eights; at most 8 waves a SIMD.
        by_registers = 4 * min(8, 512 // _round_up(registers, 8))
    else:
        # 16,384 registers for each of 4 schedulers, handed out to warps in units of 256.
        by_registers = 4 * (16_384 // _round_up(32 * registers, 256))
    limits = [chip.programs, chip.warps // warps, by_registers // warps]
    if per_program := _round_up(shared, 128) + chip.shared_reserved:
        limits.append(chip.shared // per_program)
    if tensor_memory:
        limits.append(chip.tensor_memory // tensor_memory)
    return min(limits)


def _dot_shape(ttir: str) -> tuple[int, int, int] | None:
    match = re.search(r"\btt\.dot .*: tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x", ttir)
    return (int(match[1]), int(match[3]), int(match[2])) if match else None


def _narrow_accesses(ttgir: str, widths: dict[tuple[str, int, int], set[int]], wanted: int) -> list[str]:
    """Return, as text, the streaming accesses that move fewer than `wanted` bytes a thread.

    Triton's intermediate code knows the tiles, later stages the widths; lines and columns of the source join them.
    """
    found = set()
    for kind, size, file, line, column in _streaming_tiles(ttgir):
        narrowest = min(widths.get((kind, line, column), {0}))
        if narrowest < wanted:
            what = f"{narrowest}-byte {kind}" if narrowest else f"no instruction found for the {kind}"
            found.add(f"{what} of a tile of {size} bytes at {file}:{line}:{column}")
    return sorted(found)


def _streaming_tiles(ttgir: str) -> list[tuple[str, int, str, int, int]]:
    """Return "load" or "store", bytes, file, line and column of each large tile of floating-point numbers."""
    operation = re.compile(
        r"(tt\.load|tt\.store|ttg\.async_copy_global_to_local|\w+\.buffer_(?:load|store)\w*) "
        r".*tensor<((?:\d+x)+)(?:!tt\.ptr<)?(\w+).*loc\((#loc\d*)\)$"
    )
    locations = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttgir, re.MULTILINE))
    tiles = []
    for row in ttgir.splitlines():
        if (match := operation.search(row)) and match[3] in ELEMENT_BYTES:
            size = prod(int(n) for n in match[2].split("x")[:-1]) * ELEMENT_BYTES[match[3]]
            if size > STREAMING_TILE_BYTES:
                tiles.append(("store" if "store" in match[1] else "load", size, *_place(match[4], locations)))
    return tiles


def _place(location: str, locations: dict[str, str]) -> tuple[str, int, int]:
    """Return file, line and column of a location; of an inlined function's, those inside the function."""
    text = locations[location]
    while not (match := re.match(r'"(.+)":(\d+):(\d+)$', text)):
        text = locations[re.findall(r"#loc\d*", text)[0]]
    return match[1].rsplit("/", 1)[-1], int(match[2]), int(match[3])


def _widths_in_llvm(llvm: str) -> dict[tuple[str, int, int], set[int]]:
    """Return the bytes a thread of global "load"s and "store"s by line and column, from LLVM's code for NVIDIA.

    Machine code has the same widths, but its line numbers cannot be used: accesses are inline assembly of
    several lines, and LLVM gives each of them a number of its own.
    """
    places = dict(re.findall(r"^!(\d+) = .*!DILocation\((line: \d+, column: \d+)", llvm, re.MULTILINE))
    access = re.compile(
        r"(?<![a-z])(ld|st)\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.b(\d+) .*!dbg !(\d+)"
        r"|\bcp\.async\.c[ag]\.shared\.global .*, 0x([0-9a-f]+)\b.*!dbg !(\d+)"
    )
    widths: dict[tuple[str, int, int], set[int]] = {}
    for kind, vector, bits, place, copied, copy_place in access.findall(llvm):
        line, column = map(int, re.findall(r"\d+", places[place or copy_place]))
        width = int(copied, 16) if copied else int(vector or 1) * int(bits) // 8
        widths.setdefault(("store" if kind == "st" else "load", line, column), set()).add(width)
    return widths


def _widths_in_program(program: Program) -> dict[tuple[str, int, int], set[int]]:
    """Return the same as `_widths_in_llvm` from AMD's machine code, which knows lines and columns."""
    widths: dict[tuple[str, int, int], set[int]] = {}
    for i in program.instructions:
        if i.access:
            widths.setdefault((i.access.kind, i.line, i.column), set()).add(i.access.width)
    return widths


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """Return cuobjdump's resource usage and nvdisasm's SASS with source lines."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "kernel.cubin")
        path.write_bytes(cubin)
        return (
            _output(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path),
            # Without -ndf it analyses the flow of data, too, which takes a third of its time.
            _output(triton.knobs.nvidia.nvdisasm.path, "-c", "-g", "-ndf", path),
        )


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str, default: int | None = None) -> int:
    match = re.search(pattern, text)
    if match is None and default is None:
        raise ValueError(f"the compiler's output has no {pattern}")
    return int(match[1]) if match else int(default or 0)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
