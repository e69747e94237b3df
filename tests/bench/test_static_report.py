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

from glyphcrm_kernels._shared.optional_triton import triton
from glyphcrm_kernels.registry import OPS

from bench.environment import ROOT

KERNELS = sorted(set().union(*(op.kernel_names for op in OPS.values())))
# For sm_90 in 16 bits alone; tests/kernels/conv/test_hopper_compiled.py looks closer at them.
HOPPER_KERNELS = ("_glyph_conv_hopper_fwd_kernel", "_glyph_conv_hopper_wgrad_kernel")
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
    return [f"{r['launch']} {r['dtype']} {r['target']}: {found}" for r in launches for found in r["violations"]]


of_the_newest = pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9),
    reason="older releases spill a few registers in single launches (docs/kernels.md)",
)


@of_the_newest
@pytest.mark.parametrize("kernel", KERNELS)
def test_budgets(launches: list[dict[str, Any]], kernel: str) -> None:
    of_kernel = [r for r in launches if r["kernel"] == kernel]
    assert {(r["target"], r["dtype"]) for r in of_kernel} == {(t, d) for t in TARGETS for d in DTYPES}
    assert broken_budgets(of_kernel) == []


@pytest.mark.parametrize("kernel", HOPPER_KERNELS)
def test_budgets_on_hopper(launches: list[dict[str, Any]], kernel: str) -> None:
    of_kernel = [r for r in launches if r["kernel"] == kernel]
    assert {(r["target"], r["dtype"]) for r in of_kernel} == {("sm_90", "bfloat16")}
    assert broken_budgets(of_kernel) == []


@pytest.mark.slow
def test_budgets_at_all_sizes(tmp_path: Path) -> None:
    assert broken_budgets(launches_of(tmp_path / "report.json")) == []


def test_every_kernel_that_is_written_is_compiled(launches: list[dict[str, Any]]) -> None:
    sources = Path(*glyphcrm_kernels.__path__).rglob("*.py")
    written = {name for path in sources for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.MULTILINE)}
    assert {r["kernel"] for r in launches} == written == {*KERNELS, *HOPPER_KERNELS}


def test_tensor_cores_and_wide_accesses_are_counted(launches: list[dict[str, Any]]) -> None:
    """Of the 9x9 convolution in bfloat16, whose code is known."""
    (names, widths) = ({}, {})
    for r in launches:
        if (r["kernel"], r["dtype"]) == ("_glyph_conv_fwd_kernel", "bfloat16") and "9x9" in r["launch"]:
            names.setdefault(r["target"], set()).update(r["matrix"])
            widths.setdefault(r["target"], set()).update(r["loads"])
    assert names == {
        "sm_80": {"mma.sync"},
        "sm_90": {"wgmma.mma_async"},
        "sm_100": {"tcgen05.mma"},
        "gfx942": {"v_mfma"},
    }
    assert all("16" in found for found in widths.values())


@pytest.mark.parametrize("name", ["sound", "sound dot"])
def test_sound_kernels_pass(verdicts: dict[str, list[str]], name: str) -> None:
    assert verdicts[name] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("spills", r"\d+ bytes of stack a thread: registers are spilled"),
        ("misaligned", r"4-byte load of a tile of 4096 bytes at faulty_kernels\.py:\d+:\d+"),
        ("atomic", r"atomic operations on global memory"),
        ("dot without tensor cores", r"1 dots run without tensor cores"),
        ("dot without tensor cores", r"no tensor-core instruction, but tl\.dot"),
        ("shared memory", r"\d+ bytes of shared memory; the chip gives a program 232448"),
    ],
)
def test_faulty_kernels_are_found(verdicts: dict[str, list[str]], name: str, said: str) -> None:
    assert any(re.match(said, violation) for violation in verdicts[name]), verdicts[name]
