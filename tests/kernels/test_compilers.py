"""The C functions as other compilers build them: under gcc's sanitizers, and by clang. The tests of the ops decide."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = runpy.run_path(str(ROOT / "kernels/extension.py"))["FLAGS"]
# Each op's own, in every length of vectors: results, NaN, threads. A limit on memory does not go with the sanitizers'.
TESTS = [f"tests/kernels/{op}/test_cpu.py" for op in ("addnorm", "stem", "conv", "attention")]
TESTS.append("tests/kernels/test_registry.py")
SELECTED = "(true or nan or threads or nothing) and not triton or float64 and cpu"

pytestmark = pytest.mark.slow


def run_tests(folder: Path, compiler: list[str], **environment: str) -> None:
    """Build a copy of the package with `compiler` and run the tests of its C functions."""
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"{compiler[0]} is not installed")
    package = shutil.copytree(
        ROOT / "kernels/glyphcrm_kernels", folder / "glyphcrm_kernels", ignore=shutil.ignore_patterns("*.so")
    )
    sources = sorted(map(str, (package / "csrc").glob("*.c")))
    library = ["-shared", "-fPIC", *sources, "-o", str(package / "_cpu.so"), "-lm"]
    built = subprocess.run([*compiler, *library], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--capture=sys", "-k", SELECTED, *TESTS],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "CI": "true"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert " passed" in done.stdout, done.stdout


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer; an error ends the process."""
    flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    # The C++ library as well, whose exceptions the sanitizer looks for as it starts.
    asked = [["gcc", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so.6")]
    preloaded = [subprocess.run(one, capture_output=True, text=True).stdout.strip() for one in asked]
    if not all(Path(path).is_absolute() for path in preloaded):
        pytest.skip("gcc has no AddressSanitizer here")
    environment = {"LD_PRELOAD": " ".join(preloaded), "ASAN_OPTIONS": "detect_leaks=0"}  # Python leaks on purpose
    run_tests(tmp_path, ["gcc", *FLAGS, "-O1", *flags], **environment)


def test_clangs_build_is_right(tmp_path: Path) -> None:
    """Vectors of four alone (see csrc/each_instruction_set.h), in one thread: its OpenMP is not PyTorch's."""
    run_tests(tmp_path, ["clang", *(flag for flag in FLAGS if flag != "-fopenmp")])
