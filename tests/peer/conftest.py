"""transformers' marks, and the table of what does not apply."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.peer.reasons import REASONS

# Of transformers' tests, beside those that its own `testing_utils` registers.
MARKS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_configure(config: pytest.Config) -> None:
    """Make their marks known to `--strict-markers`."""
    for mark in (*MARKS, "is_training_test"):
        config.addinivalue_line("markers", f"{mark}: of transformers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect what is in the table to fail, and say so if it passes."""
    for item in items:
        reason = REASONS.get((item.parent.name if item.parent else "", item.name))
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(autouse=True)
def _failures_of_parts_are_the_whole_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest counts a failed `subTest` as a failure of its own, which is expected of no test."""

    @contextmanager
    def sub_test(*_: Any, **__: Any) -> Iterator[None]:
        yield

    if request.node.get_closest_marker("xfail"):
        monkeypatch.setattr(unittest.TestCase, "subTest", sub_test)
