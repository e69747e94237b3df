"""The card of the shipped model is one to huggingface_hub, and its scores are those of the runs."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from tests.docs.pages import ROOT


def test_the_card_has_the_scores_of_the_results() -> None:
    data = ModelCard.load(ROOT / "checkpoints" / "glyphcrm-tiny" / "README.md").data
    assert (data.language, data.license, data.pipeline_tag) == ("zh", "mit", "fill-mask")
    results = json.loads((ROOT / "docs" / "results" / "results.json").read_text(encoding="utf-8"))
    of_runs = {name.split()[1]: entry["value"] for name, entry in results.items() if name.endswith(" glyphcrm")}
    assert data.eval_results and len(data.eval_results) == 10
    for result in data.eval_results:
        measured = of_runs[result.dataset_type][result.metric_type]["mean"]
        assert result.metric_value == pytest.approx(100 * measured, abs=0.051)
