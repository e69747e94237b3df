"""`pytest bench/` runs every case once, as a smoke test; `pytest bench/ --benchmark` measures."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import torch

from bench.results import RESULTS, table

PACKAGES = ("torch", "triton", "transformers", "numpy", "liger_kernel", "flash_attn")
COLUMNS = ["median", "iqr", "min", "rounds"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="measure, instead of running each case once")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True
    config.option.benchmark_columns = config.option.benchmark_columns or COLUMNS


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add to the JSON what decides a kernel's speed."""
    for name in PACKAGES:
        try:
            machine_info[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            machine_info[name] = None
    machine_info["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine_info["gpu"] = properties.name
        machine_info["multiprocessors"] = properties.multi_processor_count
        machine_info["cuda"] = torch.version.cuda or torch.version.hip


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the kernels' speeds: time as a multiple of the group's first way, measured alternately."""
    if results := config.stash[RESULTS]:
        terminalreporter.section("kernels against their peers")
        for line in table(results):
            terminalreporter.write_line(line)
        terminalreporter.write_line("x first: time as a multiple of the group's first way's, measured alternately")
