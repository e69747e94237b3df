"""What a user gets from pip: wheel and source distribution, installed into an empty environment."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a user does first, away from the checkout: the command, both packages, an operation, the model.
PROGRAM = """
import sys, torch
import glyphcrm, glyphcrm_kernels
from transformers import AutoModel, AutoTokenizer
checkpoint, home = sys.argv[1:]
assert all(module.__file__.startswith(home) for module in (glyphcrm, glyphcrm_kernels)), glyphcrm.__file__
normal = glyphcrm_kernels.add_norm(torch.randn(4, 64), torch.randn(4, 64), torch.ones(64), torch.zeros(64))
torch.testing.assert_close(normal.std(-1, unbiased=False), torch.ones(4))
tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint)
print(tuple(model(**tokenizer("天下", return_tensors="pt")).last_hidden_state.shape))
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command in a folder outside of the checkout, without its packages on the path; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel, and the source distribution, made of what git tracks and no more; with this environment's tools."""
    base = tmp_path_factory.mktemp("distributions")
    source = base / "source"
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "tests/", "bench/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    run(sys.executable, "-c", build, base, cwd=source)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", base)
    run(*pip, source, cwd=base)
    (wheel,), (sdist,) = base.glob("*.whl"), base.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_the_wheel_holds_both_packages(distributions: dict[str, Path]) -> None:
    """With the mark of typed packages, and the licence; no tests, no benchmarks."""
    names = zipfile.ZipFile(distributions["wheel"]).namelist()
    for name in ("glyphcrm/py.typed", "glyphcrm/cli/entry.py", "glyphcrm_kernels/py.typed"):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"glyphcrm", "glyphcrm_kernels"}
    assert not any(name.endswith((".c", ".h")) for name in names)


def test_the_source_distribution_can_be_built_from(distributions: dict[str, Path]) -> None:
    """It holds the C files with their headers."""
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not any(name.startswith("tests") for name in names)
    sources = (path for ending in ("c", "h") for path in (ROOT / "kernels/glyphcrm_kernels/csrc").glob(f"*.{ending}"))
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= names


def install(distribution: Path, home: Path, extras: str = "") -> Path:
    """Install into a new environment that borrows this one's other packages, none over the network; return its bin."""
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    python = home / "bin" / "python"
    path = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", path, cwd=home.parent).strip())
    # Behind the environment's own: an editable install of this project there must not be found first.
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index")
    run(*pip, "--no-deps", "--no-build-isolation", "--ignore-installed", distribution, cwd=home.parent)
    run(*pip, f"glyphcrm{extras}", cwd=home.parent)  # what it requires is there
    return home / "bin"


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_installs_and_runs_outside_of_the_checkout(
    distributions: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    home = tmp_path / "environment"
    programs = install(distributions[kind], home)
    assert "atlas" in run(programs / "glyphcrm", "--help", cwd=tmp_path)
    checkpoint = ROOT / "checkpoints" / "glyphcrm-tiny"
    assert run(programs / "python", "-c", PROGRAM, checkpoint, home, cwd=tmp_path).strip().endswith("(1, 4, 256)")


def test_from_the_wheel_to_a_prediction(distributions: dict[str, Path], tmp_path: Path) -> None:
    """Environment, pip, pretrain, finetune, predict: no other file than the wheel, and texts that it requires."""
    glyphcrm = install(distributions["wheel"], tmp_path / "environment", "[pretrain,finetune,demo]") / "glyphcrm"
    steps = ("--steps", "2", "--eval-every", "2", "--save-every", "2", "--batch-size", "4", "--micro-batch-size", "4")
    sizes = ("--preset", "nano", "--no-input-only", "--eval-samples", "8")
    run(glyphcrm, "pretrain", "--output-dir", "run", *sizes, *steps, cwd=tmp_path)
    samples = ("--train-samples", "64", "--dev-samples", "16", "--test-samples", "16", "--max-length", "32")
    once = ("--seeds", "1", "--epochs", "1", "--keep-model", "best")
    told = run(
        *(glyphcrm, "finetune", "--task", "demo_sentiment", "--model", "run/model", *samples, *once), cwd=tmp_path
    )
    use = shlex.split(told.splitlines()[-1].removeprefix("use it: glyphcrm "))
    use[use.index("TEXT")] = "这本书很好看。"
    answer = run(glyphcrm, *use, cwd=tmp_path)
    assert "这本书很好看。" in answer and "%" in answer
