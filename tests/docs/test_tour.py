"""The notebook runs from top to bottom, and prints what is printed in it."""

from __future__ import annotations

import re
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.docs.pages import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def outputs(notebook: Any) -> list[str]:
    """Return what each cell prints and shows, numbers aside: their last digits depend on the processor."""
    cells = [cell.get("outputs", ()) for cell in notebook.cells]
    assert not [out.text for cell in cells for out in cell if out.get("name") == "stderr"]
    # One text, as what is printed comes in pieces of any length.
    shown = ["".join(out.get("text") or out["data"]["text/plain"] for out in cell) for cell in cells]
    return [re.sub(r"\d+\.\d+|0x\w+", "#", text) for text in shown]


def test_the_tour_runs_and_prints_what_it_holds() -> None:
    """After a change: `jupyter-execute --inplace docs/tour.ipynb`."""
    kept, run = (nbformat.read(TOUR, as_version=4) for _ in range(2))
    NotebookClient(run, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert outputs(run) == outputs(kept)
    assert "涑 # 何 # 洹 # 混" in "".join(outputs(run))
    assert TOUR.stat().st_size < 100_000
