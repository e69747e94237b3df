"""Reads machine code: nvdisasm's SASS and LLVM's AMD GCN assembly, as instructions, memory accesses and loops."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# SASS: `/*15a0*/  @P0 HGMMA.64x64x16.F32.BF16 R56, gdesc[UR20], R56 ;`
SASS_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
SASS_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
SASS_LABEL = re.compile(r"^(\.L\w+):")
SASS_TENSOR = re.compile(r"(?:[HIDQO]MMA|[HIQB]GMMA|UTC[HQIO]MMA)\b")
SASS_GLOBAL = re.compile(r"(LDGSTS|LDG|LD|STG|ST|UTMALDG|UTMASTG|UBLKCP|ATOMG?|REDG?)\b(?!.*\.SHARED)")
SASS_END = re.compile(r"(?:EXIT|RET|BRX|JMX)\b")

# GCN: `\tbuffer_load_dwordx4 v[78:81], v86, s[8:11], 0 offen`
GCN_INSTRUCTION = re.compile(r"^\t([a-z]\w+)(?:\s+([^;]*?))?\s*(?:;.*)?$")
GCN_LINE = re.compile(r"^\t\.loc\t.*; ([^:\s]*):(\d+)(?::(\d+))?")
GCN_LABEL = re.compile(r"^(\.LBB\w+):")
GCN_TENSOR = re.compile(r"v_s?mfma")
GCN_GLOBAL = re.compile(r"(?:global|buffer|flat)_(load|store|atomic)_(\w+)")
GCN_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "sshort": 2, "short": 2}

# What kind of work an instruction is; what is not listed computes integers: addresses, masks, copies.
KINDS = {
    "wait": re.compile(r"BAR|DEPBAR|LDGDEPBAR|WARP|SYNCS|MEMBAR|FENCE|UTCBAR|NOP|s_waitcnt|s_barrier|s_nop"),
    "shared memory": re.compile(r"LDS|STS|LDSM|STSM|ATOMS|LDT|STT|ds_"),
    "branch": re.compile(r"BRA|EXIT|BSSY|BSYNC|RET|CALL|s_c?branch|s_endpgm"),
    "float": re.compile(
        r"F(ADD|MUL|FMA|SETP|SEL|MNMX)|H(ADD|MUL|FMA|MNMX)2|MUFU|[FI]2[FI]|v_\w*f(16|32|64)|v_(cvt|exp)"
    ),
}


class Access(NamedTuple):
    """One instruction that reads or writes global memory."""

    kind: str  # "load", "store" or "atomic"
    width: int  # bytes a thread; 0 for a bulk copy by the TMA unit
    bypasses_l1: bool


@dataclass(frozen=True)
class Instruction:
    """One machine instruction and the line of the Python source it was compiled from."""

    opcode: str
    operands: str
    predicate: str = ""
    file: str = ""  # without its directory
    line: int = 0
    column: int = 0  # 0 where the compiler does not say

    def __str__(self) -> str:
        guard = f"@{self.predicate} " if self.predicate else ""
        return f"{guard}{self.opcode} {self.operands}".rstrip()

    @property
    def is_tensor(self) -> bool:
        """Whether it runs on tensor cores (matrix cores)."""
        return bool(SASS_TENSOR.match(self.opcode) or GCN_TENSOR.match(self.opcode))

    @property
    def is_filler(self) -> bool:
        """Whether it never runs: ptxas puts `@!PT LDS RZ, [RZ]` before fences."""
        return self.predicate == "!PT"

    @property
    def is_spill(self) -> bool:
        """Whether it moves a register to or from local memory."""
        return self.opcode.startswith(("LDL", "STL", "scratch_load", "scratch_store"))

    @property
    def kind(self) -> str:
        """ "tensor", "global memory", "wait", "shared memory", "branch", "float" or "integer"."""
        if self.is_tensor:
            return "tensor"
        if self.access:
            return "global memory"
        return next((kind for kind, pattern in KINDS.items() if pattern.match(self.opcode)), "integer")

    @property
    def access(self) -> Access | None:
        """The global memory access that the instruction makes, if any."""
        if match := GCN_GLOBAL.match(self.opcode):
            kind, width = match.groups()
            width = re.sub(r"_d16(_hi)?$", "", width)
            return Access(kind, GCN_WIDTHS.get(width, 1), bypasses_l1=False)
        if not (match := SASS_GLOBAL.match(self.opcode)):
            return None
        name, modifiers = match[1], self.opcode.split(".")[1:]
        if name.startswith(("ATOM", "RED")):
            return Access("atomic", 4, bypasses_l1=True)
        kind = "store" if name in ("ST", "STG", "UTMASTG") else "load"
        if name.startswith("U"):
            return Access(kind, 0, bypasses_l1=True)
        bits = [int(m) for m in modifiers if m in ("64", "128", "256")]
        bits += [int(m[1:]) for m in modifiers if m in ("U8", "S8", "U16", "S16")]
        return Access(kind, (bits[0] if bits else 32) // 8, bypasses_l1="BYPASS" in modifiers)

    @property
    def tensor_flops(self) -> int:
        """Multiplications and additions of one tensor-core instruction; 0 where the opcode does not tell.

        HGMMA counts once for the four warps that issue it together, HMMA and mfma for each warp.
        """
        if match := re.search(r"GMMA\.(\d+)x(\d+)x(\d+)", self.opcode):
            m, n, k = map(int, match.groups())
        elif match := re.search(r"MMA\.16(8)(4|8|16|32)\b", self.opcode):
            m, n, k = 16, int(match[1]), int(match[2])
        elif match := re.search(r"mfma_\w+?_(\d+)x(\d+)x(\d+)", self.opcode):
            m, n, k = map(int, match.groups())
        else:
            return 0
        return 2 * m * n * k

    @property
    def tensor_operand_bytes(self) -> int:
        """Bytes that an HGMMA reads from shared memory: always B, and A unless it stands in registers."""
        match = re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", self.opcode)
        if not match:
            return 0
        m, n, _ = map(int, match.groups())
        # K is 32 bytes of either operand, whatever the type. `R24, gdesc[UR8], R24` has both in shared memory.
        registers = self.operands.split("gdesc")[0].count("R")
        return 32 * (n + (m if registers == 1 else 0))

    @property
    def target(self) -> str:
        """The label that a branch goes to, or ""."""
        match = re.search(r"\.L\w+", self.operands)
        return match[0] if match and re.match(r"BRA|s_c?branch", self.opcode) else ""

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction can be the one after this."""
        if self.predicate:
            return True
        if self.opcode.startswith("BRA"):
            # `BRA.U UP0, (.L)` and `BRA P0, (.L)` carry their condition as an operand.
            return "," in self.operands
        return not (SASS_END.match(self.opcode) or self.opcode in ("s_branch", "s_endpgm", "s_setpc_b64"))


class Loop(NamedTuple):
    """The instructions of a natural loop, those of loops inside it included."""

    instructions: list[Instruction]
    innermost: bool  # no smaller loop in it has tensor-core instructions or global accesses

    def count(self, kind: str) -> int:
        """Return how many instructions are of a kind."""
        return sum(i.kind == kind for i in self.instructions if not i.is_filler)

    @property
    def issued(self) -> int:
        """How many instructions a warp issues in one turn, all of them taken to be executed."""
        return sum(not i.is_filler for i in self.instructions)


@dataclass(frozen=True)
class Program:
    """The machine code of one kernel."""

    instructions: list[Instruction]
    labels: dict[str, int]  # label -> index of the instruction behind it

    @classmethod
    def from_sass(cls, text: str) -> Program:
        """Parse what `nvdisasm -c -g` prints."""
        return cls._parse(text, SASS_LABEL, SASS_LINE, SASS_INSTRUCTION)

    @classmethod
    def from_gcn(cls, text: str) -> Program:
        """Parse the assembly that LLVM writes for AMD GPUs."""
        return cls._parse(text.partition("s_code_end")[0], GCN_LABEL, GCN_LINE, GCN_INSTRUCTION)

    @classmethod
    def _parse(cls, text: str, label: re.Pattern[str], line: re.Pattern[str], code: re.Pattern[str]) -> Program:
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        source = ("", 0, 0)
        for row in text.splitlines():
            if match := label.match(row):
                labels[match[1]] = len(instructions)
            elif match := line.search(row):
                column = match[3] if line is GCN_LINE else None
                source = (match[1].rsplit("/", 1)[-1], int(match[2]), int(column or 0))
            elif match := code.search(row):
                *guard, opcode, operands = match.groups("")
                instructions.append(Instruction(opcode, operands, guard[0] if guard else "", *source))
        return cls(instructions, labels)

    @cached_property
    def loops(self) -> list[Loop]:
        """The natural loops that have tensor-core instructions or global accesses, in the order of the code.

        A jump backwards is not yet a loop: ptxas moves rare code, such as waiting for a barrier, behind
        the end and jumps back from there. An edge closes a loop if it goes to a block that dominates it.
        """
        blocks, successors = self._blocks()
        dominators = _dominators(successors)
        bodies: dict[int, set[int]] = {}
        for tail, heads in enumerate(successors):
            for head in heads:
                if head in dominators[tail]:
                    bodies.setdefault(head, {head}).update(_between(head, tail, successors))
        working = {
            head: body
            for head, body in bodies.items()
            if any(i.is_tensor or i.access for block in body for i in self.instructions[slice(*blocks[block])])
        }
        return [
            Loop(
                [i for block in sorted(body) for i in self.instructions[slice(*blocks[block])]],
                innermost=not any(other < body for other in working.values()),
            )
            for _, body in sorted(working.items())
        ]

    def _blocks(self) -> tuple[list[tuple[int, int]], list[list[int]]]:
        """Cut the code into basic blocks ``[start, end)``, and say which block can follow which."""
        starts = {0, *self.labels.values()}
        starts |= {i + 1 for i, code in enumerate(self.instructions) if code.target or not code.falls_through}
        edges = sorted(s for s in starts if s < len(self.instructions))
        blocks = list(zip(edges, [*edges[1:], len(self.instructions)], strict=True))
        index = {start: number for number, (start, _) in enumerate(blocks)}
        successors = []
        for number, (_, end) in enumerate(blocks):
            last = self.instructions[end - 1]
            following = [number + 1] if last.falls_through and number + 1 < len(blocks) else []
            if last.target in self.labels and self.labels[last.target] in index:
                following.append(index[self.labels[last.target]])
            successors.append(following)
        return blocks, successors


def _dominators(successors: list[list[int]]) -> list[set[int]]:
    """Return for each block the blocks that every way from block 0 to it passes through."""
    count = len(successors)
    predecessors: list[list[int]] = [[] for _ in range(count)]
    for block, following in enumerate(successors):
        for other in following:
            predecessors[other].append(block)
    # Blocks that cannot be reached keep the empty set, so nothing there counts as a loop.
    reachable = _reach(0, successors)
    dominators = [set(reachable) if block in reachable else set() for block in range(count)]
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in sorted(reachable - {0}):
            new = {block}.union(set.intersection(*(dominators[p] for p in predecessors[block] if p in reachable)))
            changed |= new != dominators[block]
            dominators[block] = new
    return dominators


def _reach(start: int, successors: list[list[int]], without: int = -1) -> set[int]:
    seen, stack = {start}, [start]
    while stack:
        for block in successors[stack.pop()]:
            if block not in seen and block != without:
                seen.add(block)
                stack.append(block)
    return seen


def _between(head: int, tail: int, successors: list[list[int]]) -> set[int]:
    """Return the blocks of the loop that the edge from `tail` to `head` closes: those that reach tail without head."""
    predecessors: list[list[int]] = [[] for _ in successors]
    for block, following in enumerate(successors):
        for other in following:
            predecessors[other].append(block)
    return {head} if head == tail else _reach(tail, predecessors, without=head)
