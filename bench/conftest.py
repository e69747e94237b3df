"""`pytest bench/` runs every case once, as a smoke test; `pytest bench/ --benchmark` measures."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="measure, instead of running each case once")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True
