"""Both distributions, built from copies of the sources, and the kernels alone beside nothing but torch."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels.examples import EXAMPLES

pytest.importorskip("setuptools", minversion="77", reason="builds without fetching a build environment")

ROOT = Path(__file__).parents[2]
NEEDED = ("glyphcrm", "kernels", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
HAS_COMPILER = shutil.which("cc") is not None

pytestmark = pytest.mark.slow


def build(folder: Path, output: Path, compiler: str) -> tuple[set[str], set[str], Path]:
    """Return the files of the source distribution and of the wheel built in `folder`, and the wheel."""
    program = f"""
        from setuptools import build_meta
        build_meta.build_sdist({str(output)!r})
        build_meta.build_wheel({str(output)!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", re.sub(r"\n\s+", "\n", program)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "CC": compiler},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (sources,) = output.glob("*.whl"), output.glob("*.tar.gz")
    with tarfile.open(sources) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    return packed, set(zipfile.ZipFile(wheel).namelist()), wheel


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the distributions are made of; builds write into it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "*.egg-info", "build"))
        else:
            shutil.copy(ROOT / name, copy)
    return copy


def test_the_whole_without_a_compiler_contains_both_packages(sources: Path, tmp_path: Path) -> None:
    packed, installed, _ = build(sources, tmp_path, compiler="false")
    csrc = {f"kernels/glyphcrm_kernels/csrc/{path.name}" for path in (ROOT / "kernels/glyphcrm_kernels/csrc").iterdir()}
    assert csrc | {"kernels/extension.py", "kernels/glyphcrm_kernels/registry.py"} <= packed
    for name in ("glyphcrm/__init__.py", "glyphcrm/modeling/hanglyph.py", "glyphcrm/py.typed"):
        assert name in installed
    for name in ("__init__.py", "_shared/dispatch.py", "addnorm/triton_kernels.py", "py.typed"):
        assert f"glyphcrm_kernels/{name}" in installed
    assert not any("_cpu." in name for name in installed)


def of_torch() -> Iterator[tuple[Path, str]]:
    """Yield where torch and what it requires, but Triton, are installed: a site folder and a name in it."""
    from packaging.requirements import Requirement

    wanted, seen = ["torch"], {"triton", "pytorch-triton"}
    while wanted:
        name = wanted.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        distribution = importlib.metadata.distribution(name)
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        yield from {
            (Path(str(distribution.locate_file(""))), file.parts[0])
            for file in distribution.files or ()
            if file.parts[0] not in ("..", "__pycache__")
        }


def test_the_kernels_alone_beside_torch(sources: Path, tmp_path: Path) -> None:
    """Every op on the CPU against its reference, where no transformers, fontTools or Triton can be imported."""
    packed, installed, wheel = build(sources / "kernels", tmp_path / "dist", compiler="cc" if HAS_COMPILER else "false")
    assert {"extension.py", "glyphcrm_kernels/csrc/stem_kernels.h"} <= packed
    assert any("_cpu." in name for name in installed) is HAS_COMPILER
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    (site,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    for folder, name in of_torch():
        if not (site / name).exists():
            (site / name).symlink_to(folder / name)
    zipfile.ZipFile(wheel).extractall(site)
    program = """
import importlib.util, runpy, sys
assert not any(importlib.util.find_spec(name) for name in ("transformers", "fontTools", "triton", "glyphcrm"))
import torch
from glyphcrm_kernels import choice
from glyphcrm_kernels.registry import OPS
for name, example in runpy.run_path(sys.argv[1])["EXAMPLES"].items():
    arguments = example("cpu")
    ours, theirs = OPS[name].function(**arguments), OPS[name].reference(**arguments)
    for a, b in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (ours, theirs))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    print(name, choice(name, **arguments).implementation)
"""
    done = subprocess.run(
        [tmp_path / "bare/bin/python", "-I", "-c", program, Path(__file__).with_name("examples.py")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ran = dict(line.split() for line in done.stdout.splitlines())
    # On a CPU, biased_linear is PyTorch's own product and nothing else.
    of_torch_alone = set(EXAMPLES) if not HAS_COMPILER else {"biased_linear"}
    assert ran == {name: "reference" if name in of_torch_alone else "cpu" for name in EXAMPLES}
