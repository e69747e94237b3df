"""What the pages point at exists: linked files, anchors, files named in backticks, environment variables."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, inline_code, links, name_of

# Files named alone, without a folder, are looked for anywhere; other endings are also those of a run's results.
SOURCE_ENDINGS = (".py", ".c", ".h", ".cff", ".yaml")
# A log of what was, not of what is.
HISTORY = "CHANGELOG.md"


def repository_files() -> list[str]:
    """Return the paths of all files that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [path for path in listed if path and (ROOT / path).exists()]


FILES = repository_files()
TOP_LEVEL = {path.split("/")[0] for path in FILES if "/" in path}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_exist(page: Path) -> None:
    """Relative links only: nothing outside of the repository is asked for."""
    dead = []
    for line, target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            dead.append(f"{name_of(page)}:{line}: {target}")
    assert not dead


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != HISTORY], ids=name_of)
def test_files_in_backticks_exist(page: Path) -> None:
    """`glyphcrm/data/masking.py`, `bench/`, `masking.py`: what looks like a path of the repository is one."""
    missing = [
        f"{name_of(page)}:{line}: {code}"
        for line, code in inline_code(page)
        if looks_like_a_path(code) and not is_there(code)
    ]
    assert not missing


def looks_like_a_path(code: str) -> bool:
    """Return whether `code` names a file or folder of the repository, going by its first folder or its ending."""
    if not re.fullmatch(r"[\w./-]+", code):
        return False
    return code.split("/")[0] in TOP_LEVEL if "/" in code else code.endswith(SOURCE_ENDINGS)


def is_there(code: str) -> bool:
    """Return whether the file or folder exists; a name without a folder may be anywhere."""
    return (ROOT / code).exists() if "/" in code else any(Path(path).name == code for path in FILES)


def test_every_environment_variable_is_on_its_page() -> None:
    """What code and the tests' set-up read or set by name, in Python and C, is in docs/environment.md."""
    page = {code for _, code in inline_code(ROOT / "docs" / "environment.md")}
    used = re.compile(
        r"""(?:environ(?:\.\w+)?\s*[\[(]|getenv\(|setenv\(|\w+_VARIABLE\s*=)\s*["'](?P<name>[A-Z][A-Z0-9_]+)["']"""
    )
    code = [path for path in FILES if path.endswith((".py", ".c", ".h")) and not path.startswith("tests/")]
    code.append("tests/conftest.py")
    names = {match["name"] for path in code for match in used.finditer((ROOT / path).read_text(encoding="utf-8"))}
    assert {"GLYPHCRM_KERNEL_BACKEND", "GLYPHCRM_CHECK_INDICES", "WORLD_SIZE"} <= names  # the search finds something
    assert not names - page


def test_the_readme_is_short() -> None:
    """Logs, lists of options and derivations belong into docs/."""
    assert (ROOT / "README.md").stat().st_size <= 12_800
