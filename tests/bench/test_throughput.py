"""The throughput bench: what its table and history say, on nano models; no time fails a test."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from glyphcrm_kernels.registry import OPS
from torch import Tensor

from bench.clock import interquartile_range, seconds_by_turns
from bench.environment import ROOT
from bench.throughput import history, processes
from bench.throughput import material as texts
from bench.throughput.history import RATE, Row, Run, row, table
from bench.throughput.material import Material, real_tokens, sizes
from bench.throughput.models import (
    ORDERS,
    GlyphStep,
    bert_arguments,
    build_bert,
    build_glyphcrm,
    check_backends,
    check_finite,
    step_on_cpu,
)
from glyphcrm.errors import UserError
from glyphcrm.modeling import GlyphCRMForPreTraining
from tests.classic import TEXT

NANO = sizes("nano")
CHARACTERS = TEXT.rstrip("。，")


def sentences(seed: int, count: int) -> list[str]:
    """Return sentences of 5 to 25 characters."""
    rng = random.Random(seed)
    return ["".join(rng.choices(CHARACTERS, k=rng.randint(5, 25))) + "。" for _ in range(count)]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    documents = [["".join(sentences(i, 12))] for i in range(20)]
    return Material(NANO, documents, sentences(99, 8), tmp_path_factory.mktemp("material"))


@pytest.fixture
def glyphcrm(material: Material) -> GlyphCRMForPreTraining:
    return build_glyphcrm(NANO.configuration(len(material.atlas)), material.atlas)


# The whole, in processes of its own --------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, reviews.tsv and, after `first_run`, runs.jsonl."""
    folder = tmp_path_factory.mktemp("files")
    documents = ["\n".join(sentences(i, 12)) for i in range(20)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    rows = ["label\ttext_a", *(f"1\t{text}" for text in sentences(99, 8))]
    (folder / "reviews.tsv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def bench(files: Path, chosen: str, *more: str) -> str:
    """Run the bench on the folder's files and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "pytest", "bench/", "--benchmark", "-k", chosen, "-p", "no:cacheprovider"]
    command += ["--throughput-preset", "nano", "--throughput-rounds", "1"]
    command += ["--throughput-text", str(files / "text.txt"), "--throughput-reviews", str(files / "reviews.tsv")]
    command += ["--throughput-history", str(files / "runs.jsonl"), *more]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first_run(files: Path) -> tuple[str, Run]:
    printed = bench(files, "throughput and not memory and not start_up")
    (run,) = history.read(files / "runs.jsonl")
    return printed, run


ROWS = [
    ("training", "training step, 4 x 64, real lengths"),
    ("training", "training step, 8 x 64, real lengths"),
    ("training", "training step, 4 x 64, no padding"),
    ("training", "training step, 8 x 64, no padding"),
    ("inference", "inference, batches of 4 texts, first pass, no glyph known"),
    ("inference", "inference, batches of 4 texts, all glyphs known"),
    ("hanglyph", "HanGlyph forward and backward, 12 characters"),
    ("data", "data: text to batches of 4, one worker"),
]


def test_every_row_is_in_the_history(first_run: tuple[str, Run]) -> None:
    _, run = first_run
    assert [(row.kind, row.what) for row in run.rows] == ROWS
    targets = [(row.at_least, row.target) for row in run.rows]
    assert targets == [
        *((True, 0.85), (True, 1.0)) * 2,
        *((True, 1.2), (True, 1.6), (True, 3), (True, 300_000)),
    ]
    for found in run.rows:
        assert found.rounds == 1 and found.spread == 0 and found.own > 0 and found.ratio > 0
        if found.kind != "data":
            assert found.ratio == pytest.approx(found.peer_own / found.own)
    data = next(found for found in run.rows if found.kind == "data")
    assert data.unit == RATE and data.peer_own is None and "ms a batch" in data.note
    for found in run.rows:
        assert ("to make its batch from text takes" in found.note) is (found.kind == "training")
    assert run.preset == "nano" and run.text == "training text: text.txt; inference: reviews.tsv"
    assert run.versions["torch"] == torch.__version__ and run.machine["threads"] == 1
    assert set(run.versions) == {"torch", "transformers", "triton", "glyphcrm", "python"}


@pytest.mark.slow
def test_rows_of_whole_processes_are_in_the_history(files: Path, tmp_path: Path) -> None:
    own = shutil.copytree(files, tmp_path / "own", ignore=shutil.ignore_patterns("runs.jsonl"))
    bench(own, "throughput and (memory or start_up)")
    ((memory, start_up),) = (run.rows for run in history.read(own / "runs.jsonl"))
    assert (memory.kind, memory.what) == ("memory", "peak memory of a training step, 4 x 64")
    assert (start_up.kind, start_up.what) == ("start-up", "start-up: import, load nano, first sentence")
    assert [(row.at_least, row.target) for row in (memory, start_up)] == [(False, 1.15), (False, 1.1)]
    assert memory.ratio > 0 and start_up.ratio == pytest.approx(start_up.own / start_up.peer_own)


def test_every_row_is_printed(first_run: tuple[str, Run]) -> None:
    printed, run = first_run
    lines = printed.splitlines()
    for found in run.rows:
        (line,) = (line for line in lines if line.startswith(f"| {found.what} "))
        assert (" reached " in line) == found.reached and f"{'≥' if found.at_least else '≤'} " in line
    assert f"torch {torch.__version__}" in printed and str(run.machine["cpu"]) in printed


def test_a_second_run_shows_the_first(first_run: tuple[str, Run], files: Path) -> None:
    printed = bench(files, "throughput and data")
    first, second = history.read(files / "runs.jsonl")
    assert first == first_run[1] and [found.kind for found in second.rows] == ["data"]
    header, _, line = (line for line in printed.splitlines() if line.startswith("|"))
    old = next(found for found in first.rows if found.kind == "data")
    assert f"{first.date[:10]}, {first.commit[:8]}" in header and f"{old.ratio / 1e3:,.0f} k ± 0 k |" in line


def test_the_peak_is_not_that_of_the_process_that_asks(material: Material) -> None:
    """What getrusage's ru_maxrss would say."""
    path = material.directory / "batch.pt"
    torch.save(next(material.full_batches(4)), path)
    much = b"x" * (1 << 30)
    peak = processes.peak_memory("bert", "nano", material.directory / Material.ATLAS_FILE, path)
    assert 0 < peak.before < peak.peak < len(much)


# Its parts ---------------------------------------------------------------------------------------------


def test_ways_take_turns() -> None:
    calls: list[tuple[str, int]] = []
    ways = {name: lambda i, name=name: calls.append((name, i)) for name in "abc"}
    seconds = seconds_by_turns(ways, 3)
    expected = [("a", 0), ("b", 0), ("c", 0), ("c", 1), ("b", 1), ("a", 1), ("a", 2), ("b", 2), ("c", 2)]
    assert calls == expected and [len(seconds[name]) for name in "abc"] == [3, 3, 3]


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    faster = row("training", "what", "peer", [1, 2, 4], [2, 6, 4], at_least=2.0)
    assert faster.ratio == 2 and faster.reached and faster.spread == interquartile_range([2, 3, 1]) == 1
    smaller = row("memory", "what", "peer", [1, 2, 4], [2, 6, 4], at_most=0.4)
    assert smaller.ratio == 0.5 and not smaller.reached and (smaller.own, smaller.peer_own) == (2, 4)


def test_full_batches_have_no_padding_and_real_ones_do(material: Material) -> None:
    full, real = material.full_batches(4), material.real_batches(4)
    batches = [next(full) for _ in range(3)]
    assert all(batch["attention_mask"].shape == (4, 64) and real_tokens(batch) == 256 for batch in batches)
    assert not torch.equal(batches[0]["glyph_ids"][batches[0]["glyph_index"]], batches[1]["glyph_index"])
    assert any(real_tokens(batch) < batch["labels"].numel() for batch in (next(real) for _ in range(3)))


def test_bert_reads_the_same_batch_and_makes_logits_everywhere(material: Material) -> None:
    batch = next(material.real_batches(4))
    arguments = bert_arguments(batch)
    assert arguments["input_ids"].equal(batch["glyph_ids"][batch["glyph_index"]])
    bert = build_bert(NANO.configuration(len(material.atlas)))
    assert bert(**arguments).prediction_logits.shape == (*batch["labels"].shape, material.vocabulary)


@pytest.mark.parametrize("peer", [False, True], ids=["glyphcrm", "bert"])
def test_a_step_is_that_of_all_its_micro_batches(
    material: Material, glyphcrm: GlyphCRMForPreTraining, peer: bool
) -> None:
    """Two equal halves have the loss, which is the model's own, and the update of one of them."""
    batch = next(material.full_batches(4))
    model = (build_bert(glyphcrm.config) if peer else glyphcrm).eval()
    with torch.no_grad():
        own = model(**bert_arguments(batch) if peer else batch).loss
    before = {name: p.clone() for name, p in model.named_parameters()}
    weight = next(name for name in before if name.endswith("output.dense.weight" if peer else "0.output.weight"))
    updates = []
    for batches in ([batch], [batch, batch]):
        model.load_state_dict(before, strict=False)
        loss, _ = step_on_cpu(model)(batches)
        updates.append(model.get_parameter(weight).detach().clone())
        assert all(p.grad is None for p in model.parameters())
        assert loss.item() == pytest.approx(own.item(), abs=1e-5)
    assert torch.allclose(*updates, atol=1e-6)
    assert not updates[0].equal(before[weight])


@pytest.mark.parametrize("order", ORDERS)
def test_hanglyph_of_the_references_is_that_of_the_model(
    material: Material, glyphcrm: GlyphCRMForPreTraining, order: str
) -> None:
    rows, model = torch.arange(5, 9), glyphcrm.glyphcrm
    step = GlyphStep(model)
    made = model.hanglyph(rows, model.glyph_table.bitmaps)
    read = []  # by each convolution
    for layer in model.hanglyph.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for vectors, expected in zip(step.vectors(ORDERS[order], rows), made, strict=True):
        torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)
    assert len(read) == 7 and all(x.is_contiguous(memory_format=ORDERS[order]) for x in read)


def test_wrong_results_are_not_timed(material: Material, glyphcrm: GlyphCRMForPreTraining) -> None:
    batch = next(material.real_batches(4))
    check_backends(glyphcrm, batch)
    check_finite("GlyphCRM", glyphcrm, batch)
    assert glyphcrm.training

    def wrong(*arguments: Any) -> Tensor:
        return 1.1 * reference(*arguments)

    implementations = OPS["add_norm"].implementations
    reference = implementations["reference"].run
    with (
        patch.dict(implementations, cpu=implementations["cpu"]._replace(run=wrong, obstacle=lambda *_: "")),
        pytest.raises(AssertionError, match="GlyphCRM's fast path"),
    ):
        check_backends(glyphcrm, batch)
    with torch.no_grad():
        glyphcrm.mlm.decoder.bias[0] = torch.nan
    with pytest.raises(AssertionError, match="GlyphCRM: the loss of a training step is nan"):
        check_finite("GlyphCRM", glyphcrm, batch)


def test_files_of_text(tmp_path: Path) -> None:
    tsv = tmp_path / "a.tsv"
    tsv.write_text("qid\tlabel\ttext_a\n0\t1\t天地\n1\t0\t 玄黄 \n2\t0\t\n", encoding="utf-8")
    assert texts.column(tsv) == ["天地", "玄黄"] == texts.reviews(str(tsv))
    txt = tmp_path / "b.txt"
    txt.write_text("宇宙\n洪荒\n\n日月\n", encoding="utf-8")
    assert texts.reviews(str(txt)) == ["宇宙", "洪荒", "日月"]
    documents = list(texts.documents([str(tsv), str(txt)]))
    assert documents == [["天地"], ["玄黄"], ["宇宙", "洪荒"], ["日月"]]
    assert list(texts.limited(documents, 5)) == documents[:3]
    for content, message in (("label\tx\n1\ty\n", "one has to be text_a or text"), ("x\ttext\n1\n", "row 2 has 1")):
        tsv.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            texts.column(tsv)


def example(date: str, ratio: float, **more: object) -> Run:
    fast = Row("training", "a step", "BERT", ratio, 0.01, 0.85, True, 2.0, 1.9, "", 3)
    machine = {"cpu": "a processor", "threads": 2}
    fields = {"date": date, "commit": "0123456789ab", "machine": machine, "versions": {"torch": "2"}, "text": "text"}
    return Run(**{**fields, "preset": "base", "rows": [fast], **more})


def test_history_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert history.read(path) == []
    runs = [example("2026-01-01", 0.7), example("2026-01-02", 0.8, preset="tiny"), example("2026-01-03", 0.9, rows=[])]
    for run in runs:
        history.append(run, path)
    assert history.read(path) == runs
    assert history.before(example("2026-01-04", 0.95), runs) == runs[0]
    assert history.before(example("2026-01-04", 0.95, machine={}), runs) is None
    path.write_text(path.read_text("utf-8") + json.dumps({"date": "2026"}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"runs\.jsonl:4: no record"):
        history.read(path)


def test_the_table_says_what_was_reached_and_what_was_before() -> None:
    header, _, line, *_ = table(example("2026-01-02", 0.9), example("2026-01-01", 0.7))
    assert header.endswith("| 2026-01-01, 01234567 |")
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["a step", "BERT", "0.90 ± 0.01", "≥ 0.85", "reached", "2.00 s", "1.90 s", "3", "0.70 ± 0.01"]
    assert "missed" in table(example("2026-01-02", 0.8))[2]
    (line,) = table(example("2026-01-02", 0.8, rows=[]))
    assert "a processor, threads: 2" in line
