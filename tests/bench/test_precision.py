"""The comparison of float32, bfloat16 and int8, on the shipped model with a new head; no time fails a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.precision import WAYS, main
from glyphcrm.errors import exit_code_of
from glyphcrm.finetuning.models import load_finetuned, load_model
from glyphcrm.tasks import find_task

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "glyphcrm-tiny"
TASK = "demo_sentiment"


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finetuned")
    kind, labels = find_task(TASK).kind, ["negative", "positive"]
    model, tokenizer = load_model(SHIPPED, kind, labels, seed=0, dropout=None, attention="sdpa")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_the_table(finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", finetuned, "--task", TASK, "--test-samples", 12, "--rounds", 1]
    assert main([*map(str, given)]) == 0
    title, _, head, _, *lines = capsys.readouterr().out.splitlines()
    assert "12 test examples" in title
    names, *cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *lines))
    rows = {row[0]: dict(zip(names, row, strict=True)) for row in cells}
    assert list(rows) == list(WAYS)
    exact = rows["float32"]
    assert exact["predictions as in float32"] == "100.00%" and exact["times as fast"] == "1.00 ± 0.00"
    for row in rows.values():
        # A new head is never sure, but no coin either.
        assert float(row["predictions as in float32"].rstrip("%")) > 50


def test_each_way_computes_in_its_numbers(finetuned: Path) -> None:
    linear = {}
    for name, change in WAYS.items():
        model, _ = load_finetuned(finetuned)
        base = change(model).base_model
        linear[name] = type(base.blocks[0].intermediate)
        assert type(base.hanglyph.vector) is nn.Linear
        assert base.hanglyph.vector.weight.dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
    assert linear["float32"] is linear["bfloat16"] is nn.Linear and linear["int8"] is not nn.Linear


def test_a_model_that_is_not_fine_tuned_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: main(["--model", str(SHIPPED), "--task", TASK])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
