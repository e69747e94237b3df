"""`pytest bench/` runs every case once, as a smoke test; `pytest bench/ --benchmark` measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import environment
from bench.results import RESULTS, table
from bench.throughput import history
from bench.throughput.options import ROWS, add_options, read_options

PACKAGES = ("torch", "triton", "transformers", "numpy", "liger_kernel", "flash_attn")
COLUMNS = ["median", "iqr", "min", "rounds"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="measure, instead of running each case once")
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS], config.stash[ROWS] = [], []
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True
    config.option.benchmark_columns = config.option.benchmark_columns or COLUMNS


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add to the JSON what decides a kernel's speed."""
    machine_info |= environment.versions(PACKAGES)
    machine_info["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine_info["gpu"] = properties.name
        machine_info["multiprocessors"] = properties.multi_processor_count
        machine_info["cuda"] = torch.version.cuda or torch.version.hip


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Print the kernels' speeds: time as a multiple of the group's first way, measured alternately; the throughput."""
    if results := config.stash[RESULTS]:
        terminalreporter.section("kernels against their peers")
        for line in table(results):
            terminalreporter.write_line(line)
        terminalreporter.write_line("x first: time as a multiple of the group's first way's, measured alternately")
    if config.getoption("--benchmark") and (rows := config.stash[ROWS]):
        asked = read_options(config)
        run = history.run_of_today(asked.sizes.preset, asked.described_text, rows)
        earlier = history.read(asked.history) if asked.history is not None else []
        terminalreporter.section("throughput")
        for line in history.table(run, history.before(run, earlier)):
            terminalreporter.write_line(line)
        if asked.history is not None and exitstatus == pytest.ExitCode.OK:
            history.append(run, asked.history)
            terminalreporter.write_line(f"added to {asked.history}")
