"""The budgets that every kernel has to keep on every target, held by compiling ahead of time: no GPU needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import glyphcrm_kernels
import pytest

pytest.importorskip("triton", reason="the report compiles with Triton")

from glyphcrm_kernels.launch import Target

from bench.ahead_of_time import resident_programs
from bench.catalogue import CASES
from bench.machine_code import Access, Program

ROOT = Path(__file__).parents[2]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
DTYPES = ("bfloat16", "float32")


def run_compiler(*arguments: str | Path) -> str:
    """Run Python where Triton compiles: TRITON_INTERPRET counts when a kernel is decorated."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def launches_of(path: Path, *options: str) -> list[dict[str, Any]]:
    run_compiler("-m", "bench.static_report", "--json", path, *options)
    launches: list[dict[str, Any]] = json.loads(path.read_text())["launches"]
    return launches


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The quick report."""
    return launches_of(tmp_path_factory.mktemp("report") / "report.json", "--quick")


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[str]]:
    """What the report says against each faulty kernel."""
    result: dict[str, list[str]] = json.loads(run_compiler(Path(__file__).with_name("faulty_kernels.py")))
    return result


def broken_budgets(launches: list[dict[str, Any]]) -> list[str]:
    return [f"{r['dtype']} {r['target']}: {violation}" for r in launches for violation in r["violations"]]


@pytest.mark.parametrize("name", [case.name for case in CASES if case.quick])
def test_budgets(launches: list[dict[str, Any]], name: str) -> None:
    of_kernel = [r for r in launches if r["launch"] == name]
    assert {(r["target"], r["dtype"]) for r in of_kernel} == {(t, d) for t in TARGETS for d in DTYPES}
    assert broken_budgets(of_kernel) == []


@pytest.mark.slow
def test_budgets_at_all_sizes(tmp_path: Path) -> None:
    launches = launches_of(tmp_path / "report.json")
    broken = {r["launch"]: found for r in launches if (found := broken_budgets([r]))}
    assert broken == {}


def test_quick_report_has_every_kernel(launches: list[dict[str, Any]]) -> None:
    sources = Path(*glyphcrm_kernels.__path__).glob("*.py")
    written = {name for path in sources for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.MULTILINE)}
    assert {r["kernel"] for r in launches} == written


@pytest.mark.parametrize("name", ["sound", "sound dot"])
def test_sound_kernels_pass(verdicts: dict[str, list[str]], name: str) -> None:
    assert verdicts[name] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("spills", r"\d+ instructions spill registers"),
        ("spills", r"\d+ bytes of stack"),
        ("misaligned", r"4-byte load of a tile of 4096 bytes at faulty_kernels\.py:\d+:\d+"),
        ("atomic", r"atomic operations on global memory"),
        ("dot without tensor cores", r"1 dots run without tensor cores"),
        ("dot without tensor cores", r"no tensor-core instruction, but tl\.dot"),
        ("shared memory", r"\d+ bytes of shared memory; the chip gives a program 232448"),
    ],
)
def test_faulty_kernels_are_found(verdicts: dict[str, list[str]], name: str, said: str) -> None:
    assert any(re.match(said, violation) for violation in verdicts[name]), verdicts[name]


def test_programs_on_a_multiprocessor() -> None:
    sm_80, sm_90 = Target("cuda", 80), Target("cuda", 90)
    assert resident_programs(sm_80, registers=32, shared=0, warps=4) == 16  # all 64 warps
    assert resident_programs(sm_80, registers=168, shared=0, warps=4) == 3  # 3 warps of 168 registers a scheduler
    assert resident_programs(sm_80, registers=32, shared=80 << 10, warps=4) == 2  # 2 of 81 KiB in 164
    assert resident_programs(sm_80, registers=32, shared=82 << 10, warps=4) == 1
    assert resident_programs(sm_90, registers=32, shared=228 << 10, warps=4) == 0
    assert resident_programs(Target("cuda", 100), registers=32, shared=0, warps=4, tensor_memory=256) == 2
    assert resident_programs(Target("hip", "gfx942"), registers=150, shared=0, warps=4) == 3  # LLVM says so, too


NESTED_LOOPS = """
_kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   LDG.E.64 R2, desc[UR4][R2.64] ;
.L_x_2:
	//## File "/somewhere/kernel.py", line 7
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0030*/              @!P1 BRA `(.L_x_5) ;
.L_x_3:
        /*0040*/              @!PT LDS RZ, [RZ] ;
        /*0050*/               @P0 LDGSTS.E.BYPASS.128 [R9], desc[UR4][R6.64] ;
        /*0060*/               @P2 BRA `(.L_x_2) ;
        /*0070*/                   BRA.U UP0, `(.L_x_1) ;
        /*0080*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*0090*/                   EXIT ;
.L_x_5:
        /*00a0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R3], R4 ;
        /*00b0*/              @!P1 BRA `(.L_x_5) ;
        /*00c0*/                   BRA `(.L_x_3) ;
.L_x_6:
        /*00d0*/                   BRA `(.L_x_6);
"""


def test_loops_of_machine_code() -> None:
    """Waiting out of line, and the endless loop behind the end, are no loops where work is done."""
    program = Program.from_sass(NESTED_LOOPS)
    outer, inner = program.loops
    assert (outer.innermost, inner.innermost) == (False, True)
    assert outer.issued == 9 and outer.count("global memory") == 2
    assert [str(i) for i in inner.instructions][:2] == ["HMMA.16816.F32.BF16 R4, R8, R10, R4", "@!P1 BRA `(.L_x_5)"]
    assert inner.issued == 7 and inner.count("tensor") == inner.count("global memory") == 1
    assert inner.instructions[0].tensor_flops == 2 * 16 * 8 * 16
    assert (inner.instructions[0].file, inner.instructions[0].line) == ("kernel.py", 7)
    assert [i.access for i in program.instructions if i.access] == [
        Access("load", 8, bypasses_l1=False),
        Access("load", 16, bypasses_l1=True),
        Access("store", 2, bypasses_l1=False),
    ]
