"""A page that names a test, as `tests/FILE.py::NAME`, names one that there is."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import PAGES, ROOT, inline_code, name_of, prose

NAMED = [
    pytest.param(*code.split("::"), id=f"{name_of(page)}:{line}")
    for page in PAGES
    for line, code in inline_code(page)
    if re.fullmatch(r"tests/[\w/]+\.py::\w+", code)
]


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_named_tests_exist(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_line_of_the_ecosystem_table_has_a_test() -> None:
    rows = [line for _, line in prose(ROOT / "docs" / "ecosystem.md") if line.startswith("|")][2:]
    assert len(rows) > 10 and all(re.search(r"`tests/[\w/]+\.py::\w+` \|$", row) for row in rows)
