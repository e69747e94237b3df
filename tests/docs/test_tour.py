"""The notebook runs from top to bottom, and prints what is printed in it."""

from __future__ import annotations

import re
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.docs.pages import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def outputs(notebook: Any) -> list[str]:
    """Return what the cells print and show, numbers aside: their last digits depend on the processor."""
    found = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert not [out.text for out in found if out.get("name") == "stderr"]
    shown = [out.get("text") or out["data"]["text/plain"] for out in found]
    return [re.sub(r"\d+\.\d+|0x\w+", "#", text) for text in shown]


def test_the_tour_runs_and_prints_what_it_holds() -> None:
    """After a change: `jupyter-execute --inplace docs/tour.ipynb`."""
    kept, run = (nbformat.read(TOUR, as_version=4) for _ in range(2))
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(run, timeout=300, coalesce_streams=True, resources=resources).execute()
    assert outputs(run) == outputs(kept)
    assert "涑 # 何 # 洹 # 混" in "".join(outputs(run))
    assert TOUR.stat().st_size < 100_000
