"""The step on paper: counts against the real models, properties over all sizes, and an example worked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench import step_model
from bench.operations import A100, H100, Chip, Term, bert_operations, bert_parameters, operations, parameters
from bench.step_time import (
    BERT_CAREFUL,
    BERT_USUAL,
    DISTINCT,
    GLYPHCRM,
    LAUNCHES_AROUND,
    LAUNCHES_OF_A_BLOCK,
    distinct_characters,
    link,
    step_time,
)
from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import BertBaseline

BASE = preset("base")
SHARED = step_model.SHARED
WAYS = st.sampled_from([*step_model.WAYS, SHARED])
CHIPS = st.sampled_from([A100, H100])
GPUS = st.sampled_from([1, 2, 8, 16, 64])
MODELS: dict[str, Callable[[GlyphCRMConfig], nn.Module]] = {
    "GlyphCRM": GlyphCRMForPreTraining,
    "BERT": BertBaseline.for_config,
}


def small_step(model: nn.Module, sequences: int, length: int, distinct: int, masked: int) -> Tensor:
    """Run a forward pass and return the loss."""
    shape = (sequences, length)
    return model(  # type: ignore[no-any-return]
        glyph_ids=torch.arange(5, 5 + distinct),
        glyph_index=torch.randint(0, distinct, shape),
        attention_mask=torch.ones(shape, dtype=torch.int64),
        token_type_ids=torch.zeros(shape, dtype=torch.int64),
        labels=torch.randint(0, 50, shape),
        label_index=torch.arange(masked),
        next_sentence_label=torch.zeros(sequences, dtype=torch.int64),
    ).loss


@pytest.mark.parametrize("name", MODELS)
def test_flops_of_forward_and_backward_are_those_of_the_model(name: str) -> None:
    config = preset("nano", vocab_size=50, num_glyphs=60, kernel_backend="reference", attn_implementation="eager")
    sequences, length, distinct, masked = 2, 40, 7, 12
    model = MODELS[name](config)
    with FlopCounterMode(display=False) as counter:
        small_step(model, sequences, length, distinct, masked).backward()
    lines = (
        operations(config, sequences, length, distinct)
        if name == "GlyphCRM"
        else bert_operations(config, sequences, length, masked)
    )
    next_sentence = 3 * 2 * sequences * config.hidden_size * (config.hidden_size + 2)  # not in the profile
    # Eager attention keeps the scores that flash attention, of the profile, computes a second time.
    again = sum(0.5 * line.forward_flops for line in lines if line.term == Term.ATTENTION)
    expected = sum(line.flops for line in lines) - again + next_sentence
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", ["base", "small", "tiny", "nano"])
def test_parameters_are_those_of_the_models(size: str) -> None:
    """Their numbers, and which of them the backward pass reaches last; the all-reduce moves 4 bytes of each."""
    config = preset(size)
    with torch.device("meta"):
        model, bert = GlyphCRMForPreTraining(config), BertBaseline.for_config(config)
    first = ("hanglyph.", "position_embeddings.", "token_type_embeddings.", "embedding_norm.", "bert.embeddings.")
    for counted, real in ((parameters(config), model), (bert_parameters(config), bert)):
        named = dict(real.named_parameters())
        assert counted.total == sum(weight.numel() for weight in named.values())
        late = [weight.numel() for name, weight in named.items() if any(part in name for part in first)]
        assert counted.embeddings == sum(late)
        blocks = [weight.numel() for name, weight in named.items() if "blocks." in name or "encoder.layer." in name]
        assert counted.encoder == sum(blocks)
    if size == "base":
        assert parameters(config).total == 111_311_222  # DESIGN


class CountLaunches(TorchDispatchMode):
    """Counts operators that compute something: those whose results are no views."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [result.alias_info for result in func._schema.returns]
        self.count += all(alias is None or alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_launches_are_about_those_of_the_model(name: str) -> None:
    counts = []
    for blocks in (3, 4):
        config = preset("nano", vocab_size=50, num_glyphs=60, kernel_backend="reference", num_hidden_layers=blocks)
        model = MODELS[name](config).train()
        with CountLaunches() as counter, torch.autocast("cpu", torch.bfloat16):
            small_step(model, 2, 40, 7, 12).backward()
        counts.append(counter.count)
    block = counts[1] - counts[0]
    assert pytest.approx(block, rel=0.1) == LAUNCHES_OF_A_BLOCK
    assert pytest.approx(counts[0] - 3 * block, rel=0.1) == LAUNCHES_AROUND[name]


def test_worked_example() -> None:
    """One sequence of 512, 100 distinct characters, on a chip of round numbers whose memory costs nothing."""
    chip = Chip("round", matrix=1e12, convolution=0.5e12, memory=1e18, nvlink=1e9, network=1e8, launch=0.0)
    step = step_time(BASE, chip, 8, 1, 512, distinct=100)
    # Forward and two gradients, 2 FLOP a MAC, 100 images, 3 outputs of 40², 32², 24² pixels, 81 taps, 64 x 64 channels.
    assert step.seconds[Term.NINE_BY_NINE] == pytest.approx(3 * 2 * 100 * 3_200 * 331_776 / 0.5e12)  # 1.274 s
    # 12 blocks of 7,077,888 weights, each used by 512 tokens.
    assert step.seconds[Term.MATMULS] == pytest.approx(3 * 2 * 512 * 12 * 7_077_888 / 1e12)  # 0.261 s
    # Two products of 512 x 512 x 768 in the forward pass, five in the backward pass.
    assert step.seconds[Term.ATTENTION] == pytest.approx(12 * 7 * 2 * 512 * 512 * 768 / 1e12)  # 0.034 s
    # 111,311,222 gradients of 4 bytes, 1.75 times over the link at 1 GB/s; 10,759,872 of them come last.
    assert step.all_reduce == pytest.approx(0.77918, rel=1e-4)
    assert step.seconds[Term.ALL_REDUCE] == pytest.approx(0.07532, rel=1e-4)
    assert step.bounds[Term.ALL_REDUCE] == "network" and step.bounds[Term.NINE_BY_NINE] == "arithmetic"
    assert step.largest == Term.NINE_BY_NINE
    assert step.tokens == 8 * 512 and step.tokens_per_second == pytest.approx(8 * 512 / step.total)
    # Nothing hidden, the step is longer by the 0.704 s of the other gradients.
    exposed = step_time(BASE, chip, 8, 1, 512, distinct=100, overlap=0.0)
    assert exposed.seconds[Term.ALL_REDUCE] == pytest.approx(exposed.all_reduce)
    assert exposed.total - step.total == pytest.approx(0.77918 - 0.07532, rel=1e-4)
    # The 100 characters are those of all 8 GPUs: 13 each; 3 vectors of 768 16-bit numbers, there and back.
    shared = step_time(BASE, chip, 8, 1, 512, SHARED, distinct=100)
    assert shared.encoded == 13
    assert shared.seconds[Term.NINE_BY_NINE] == pytest.approx(0.13 * step.seconds[Term.NINE_BY_NINE])
    assert shared.seconds[Term.EXCHANGE] == pytest.approx(2 * 0.875 * 100 * 3 * 768 * 2 / 1e9)
    # A host that needs a millisecond for each of 1,914 launches is what the step waits for.
    slow = step_time(BASE, chip._replace(matrix=1e16, convolution=1e16, launch=1e-3), 1, 1, 512, distinct=100)
    assert slow.total == pytest.approx(1.914) and slow.bounds[slow.largest] == "host"


@given(chip=CHIPS, ceiling=st.sampled_from(Chip._fields[1:]), faster=st.floats(1, 100), data=st.data())
def test_faster_ceilings_never_make_a_step_longer(chip: Chip, ceiling: str, faster: float, data: st.DataObject) -> None:
    gpus, way = data.draw(GPUS), data.draw(WAYS)
    sequences, length = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 512))
    overlap = data.draw(st.floats(0, 1))
    value = getattr(chip, ceiling)
    better = chip._replace(**{ceiling: value / faster if ceiling == "launch" else value * faster})
    before, after = (step_time(BASE, c, gpus, sequences, length, way, overlap=overlap) for c in (chip, better))
    assert after.total <= before.total * (1 + 1e-12)


@given(chip=CHIPS, gpus=GPUS, way=WAYS, sequences=st.integers(1, 64), length=st.integers(1, 511), data=st.data())
def test_more_tokens_never_make_a_step_shorter(
    chip: Chip, gpus: int, way: step_model.Way, sequences: int, length: int, data: st.DataObject
) -> None:
    step = step_time(BASE, chip, gpus, sequences, length, way)
    for more in ((sequences + data.draw(st.integers(1, 64)), length), (sequences, data.draw(st.integers(length, 512)))):
        assert step_time(BASE, chip, gpus, *more, way).total >= step.total * (1 - 1e-12)
    # With a host that costs nothing, it is longer indeed.
    quick = chip._replace(launch=0.0)
    steps = [step_time(BASE, quick, gpus, n, length, way).total for n in (sequences, 2 * sequences)]
    assert steps[1] > steps[0]


@given(chip=CHIPS, gpus=GPUS, way=WAYS, sequences=st.integers(1, 64), length=st.integers(1, 512))
def test_many_gpus_are_at_most_so_many_times_as_fast(
    chip: Chip, gpus: int, way: step_model.Way, sequences: int, length: int
) -> None:
    alone, step = (step_time(BASE, chip, n, sequences, length, way) for n in (1, gpus))
    assert alone.all_reduce == 0 and {Term.ALL_REDUCE, Term.EXCHANGE}.isdisjoint(alone.seconds)
    assert set(step.seconds) == set(step.bounds) and all(seconds >= 0 for seconds in step.seconds.values())
    assert sum(step.share(term) for term in Term) == pytest.approx(1)
    assert 0 <= step.seconds.get(Term.ALL_REDUCE, 0) <= step.all_reduce * (1 + 1e-12)
    if way.encoded != "job":  # work that GPUs share may shrink faster than their number grows
        assert step.tokens_per_second <= gpus * alone.tokens_per_second * (1 + 1e-12)
    if gpus > 1:
        assert step.tokens_per_second < gpus * alone.tokens_per_second or way.encoded == "job"


def test_each_idea_pays() -> None:
    """On the paper's batch, every idea that GlyphCRM has makes it faster, and so does fusion for BERT."""
    for chip in (A100, H100):
        speeds = {way: step_time(BASE, chip, 1, 32, 512, way).tokens_per_second for way in step_model.WAYS}
        assert all(speeds[GLYPHCRM] > speeds[way] for way in step_model.WAYS[1:4])
        assert speeds[BERT_CAREFUL] > speeds[BERT_USUAL]


@given(tokens=st.integers(1, 10**8), more=st.integers(0, 10**6), most=st.integers(1, 20_000))
def test_distinct_characters_grow_with_the_tokens(tokens: int, more: int, most: int) -> None:
    found = distinct_characters(tokens, most)
    assert 1 <= found <= min(tokens, most)
    assert found <= distinct_characters(tokens + more, most)


def test_distinct_characters_pass_through_the_measured_points() -> None:
    assert all(distinct_characters(tokens, 18_612) == distinct for tokens, distinct in DISTINCT)
    halfway = math.sqrt(4_096 * 16_384), math.sqrt(970 * 1_700)
    assert distinct_characters(halfway[0], 18_612) == round(halfway[1])


def test_a_ring_across_nodes_uses_all_adapters() -> None:
    chip = A100._replace(nvlink=200e9, network=20e9)
    assert link(chip, 8) == 200e9
    assert link(chip, 16) == link(chip, 64) == 160e9
    assert link(chip._replace(network=50e9), 64) == 200e9  # within a node it still is NVLink
    with pytest.raises(ValueError, match="12 GPUs are not whole nodes of 8"):
        step_time(BASE, chip, 12, 32, 512)


def test_the_command_prints_tables_writes_json_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, chart = tmp_path / "steps.json", tmp_path / "steps.png"
    step_model.main(["--preset", "small", "--json", str(record), "--chart", str(chart)])
    printed = capsys.readouterr().out
    rows = [row for row in printed.splitlines() if row.startswith("| H100 SXM | 32 × 512 | 8 ")]
    step = step_time(preset("small"), H100, 8, 32, 512)
    assert len(rows) == 1 and f"| {step.total * 1e3:.1f} | {step.tokens_per_second:,.0f} |" in rows[0]
    steps = json.loads(record.read_text("utf-8"))
    assert len(steps) == 2 * 4 * 3 * 7
    assert all(sum(one["seconds"].values()) == pytest.approx(one["step_seconds"]) for one in steps)
    with Image.open(chart) as image:
        assert image.size[0] == 1100 and len(image.getcolors() or []) > len(Term)


def test_the_command_takes_measured_ceilings(capsys: pytest.CaptureFixture[str]) -> None:
    step_model.main(["--chip", "A100", "--matrix-tflops", "250", "--memory-gbs", "1700"])
    printed = capsys.readouterr().out
    step = step_time(BASE, A100._replace(matrix=250e12, memory=1700e9), 1, 32, 512)
    assert f"| 32 × 512 | 1 | 1,700 | {step.total * 1e3:.1f} |" in printed and "H100" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--matrix-tflops", "600"], "say which with --chip"),
        (["--chip", "H100", "--memory-gbs", "0"], "ceilings must be above 0"),
    ],
)
def test_ceilings_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        step_model.main(arguments)
    assert message in capsys.readouterr().err
