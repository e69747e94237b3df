"""Malformed inputs through every public surface: an answer or one clear line, in bounded time and memory.

The long part is `make test-robustness`; the short one is part of every test run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.robustness.runner import faults, run, totals
from tests.robustness.surfaces import SURFACES, prepare


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are forked: sums come in the same order, and no pool of threads is lost."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", list(SURFACES))
@pytest.mark.parametrize("length", [pytest.param("long", marks=pytest.mark.slow), "short"])
def test_every_input_is_taken_or_refused_in_one_line(
    length: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    surface, long, short = SURFACES[name]
    prepare()
    outcomes = run(name, surface, long if length == "long" else short, tmp_path)
    with capsys.disabled():
        print(f"\n{totals(outcomes)}")
    assert not (found := faults(outcomes)), "\n".join(f"{f.surface} {f.seed} {f.kind}: {f.detail}" for f in found[:5])
