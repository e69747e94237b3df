"""Rows that a caller has packed, and what a GPU does with a padded batch whose collator counted its tokens."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glyphcrm.configuration import preset
from glyphcrm.data.collator import padded_batch
from glyphcrm.data.masking import IGNORED_LABEL
from glyphcrm.data.packed_collator import PackedCollator
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import (
    GlyphCRMForMaskedLM,
    GlyphCRMForMultipleChoice,
    GlyphCRMForPreTraining,
    GlyphCRMForQuestionAnswering,
    GlyphCRMForSequenceClassification,
    GlyphCRMForTokenClassification,
    GlyphCRMPreTrainedModel,
    packed_attention,
    packing,
)
from glyphcrm.modeling.attention import SelfAttention, sdpa_attention
from glyphcrm.modeling.heads import HEADS
from glyphcrm.modeling.packed_attention import WAYS, Sequences, packed_way, sequence_numbers
from tests.data.test_collator import make_sample
from tests.modeling.test_attention import gradients_of
from tests.modeling.test_packing import MASK, assert_same, build, labels_of, results

# What they look for stands in sequences of their own, which a row of several does not tell apart.
PADDED_HEADS = (GlyphCRMForQuestionAnswering, GlyphCRMForMultipleChoice)
CHARACTERS = 13  # few distinct ones: each costs the convolutions time in float64
LENGTHS = [40, 3, 64, 1, 22]  # 130 tokens, of a model with 64 positions
ENDS = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)


def sequences_of(atlas: GlyphAtlas) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, len(atlas), (n,), generator=generator) for n in LENGTHS]


@pytest.mark.parametrize("attention", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_packed_row_of_any_length_is_its_sequences(attention: str, atlas: GlyphAtlas) -> None:
    base = build(GlyphCRMForPreTraining, atlas).glyphcrm.eval()
    sequences = sequences_of(atlas)
    apart = [base(ids[None]).last_hidden_state[0] for ids in sequences]
    base.set_attn_implementation(attention)
    row = torch.cat(sequences)[None]
    for ends in (ENDS, ENDS.long(), torch.cat([ENDS, ENDS[-1:], ENDS[-1:]])):
        outputs = base(row, cu_seq_lens_q=ends, first_token_only=True)
        torch.testing.assert_close(outputs.last_hidden_state[0], torch.cat(apart), atol=2e-5, rtol=1e-4)
        firsts = torch.stack([states[0] for states in apart])
        torch.testing.assert_close(outputs.first_states[: len(LENGTHS)], firsts, atol=2e-5, rtol=1e-4)
        assert len(outputs.first_states) == len(ends) - 1 and outputs.first_states.isfinite().all()
    more = {"cu_seq_lens_k": ENDS, "max_length_q": 64, "max_length_k": 64}
    backwards = torch.cat([torch.arange(n).flip(0) for n in LENGTHS])[None]
    states = base(row, cu_seq_lens_q=ENDS, position_ids=backwards, output_hidden_states=True, **more).hidden_states
    assert [h.shape for h in states] == [(1, 130, 32)] * 4
    expected = base(sequences[2][None], position_ids=torch.arange(64).flip(0)[None]).last_hidden_state
    torch.testing.assert_close(states[-1][:, 43:107], expected, atol=2e-5, rtol=1e-4)


def test_packed_rows_that_are_none(atlas: GlyphAtlas) -> None:
    base = build(GlyphCRMForPreTraining, atlas).glyphcrm.eval()
    row = torch.cat(sequences_of(atlas))[None]
    with pytest.raises(ValueError, match=r"130 tokens is longer than the model's 64.* cu_seq_lens_q"):
        base(row)
    for message, arguments in {
        "must be .1, length": {"input_ids": row.view(2, 65), "cu_seq_lens_q": ENDS},
        "takes no attention_mask": {"attention_mask": torch.ones_like(row), "cu_seq_lens_q": ENDS},
        "give cu_seq_lens_q as well": {"input_ids": row[:, :9], "cu_seq_lens_k": ENDS},
        r"\(sequences \+ 1,\) integers": {"cu_seq_lens_q": ENDS[None]},
        "rise from 0 to the row's 130": {"cu_seq_lens_q": ENDS[:-1]},
        "must rise from 0": {"cu_seq_lens_q": torch.tensor([0, 60, 40, 100, 130])},
        "cu_seq_lens_k differs": {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": torch.tensor([0, 66, 130])},
        "max_length_q=65 must be from 1 to the model's 64": {"cu_seq_lens_q": ENDS, "max_length_q": 65},
        "64 tokens, more than 40; give the largest": {"cu_seq_lens_q": ENDS, "max_length_q": 40},
        "66 tokens, more than 64; truncate it": {"cu_seq_lens_q": torch.tensor([0, 66, 130])},
        "position_ids go from 0 to 129": {"cu_seq_lens_q": ENDS, "position_ids": torch.arange(130)[None]},
    }.items():
        with pytest.raises(ValueError, match=message):
            base(**{"input_ids": row} | arguments)


@pytest.mark.parametrize("model_class", HEADS.values(), ids=lambda head: head.__name__)
def test_heads_of_a_packed_row(model_class: type[GlyphCRMPreTrainedModel], atlas: GlyphAtlas) -> None:
    """Loss and all gradients in float64 are those of the padded batch, in which rows come in the same order."""
    model = build(model_class, atlas).double()
    ids = torch.randint(5, CHARACTERS, MASK.shape, generator=torch.Generator().manual_seed(0))
    mask = torch.cat([MASK[:5], MASK[:1]]).sort(1, descending=True).values
    labels = labels_of(model_class)
    if model_class in PADDED_HEADS:
        row = ids[:1] if model_class is GlyphCRMForQuestionAnswering else ids[None, :1]
        with pytest.raises(ValueError, match=r"one softmax for all its sequences|does not tell which"):
            model(row, cu_seq_lens_q=torch.tensor([0, 3, ids.shape[1]]), **labels)
        return
    if labels["labels"].dim() == 2:
        labels["labels"] = torch.where(mask.bool(), ids % 2, -100)
        labels.pop("prediction_index", None)
    padded = {"input_ids": ids * mask, "attention_mask": mask}
    expected = trained(model, padded | labels)

    places = mask.flatten().nonzero()[:, 0]
    packed = {
        name: value.flatten()[places][None] if value.shape == mask.shape else value for name, value in labels.items()
    }
    ends = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    row = {"input_ids": ids.flatten()[places][None], "cu_seq_lens_q": ends}
    assert_same(trained(model, row | packed), expected)
    if model_class in (GlyphCRMForPreTraining, GlyphCRMForMaskedLM):
        flat = packed["labels"][0]
        packed |= {"prediction_index": torch.arange(len(flat)), "labels": flat}
        assert_same(trained(model, row | packed), expected)


def trained(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Loss and all gradients."""
    model.train().zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return {"loss": loss.detach()} | gradients_of(model)


@settings(max_examples=4, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 40), min_size=1, max_size=9), tokens=st.integers(40, 120), seed=st.integers(0, 9)
)
def test_packed_micro_batches_train_as_padded_ones(
    atlas: GlyphAtlas, lengths: list[int], tokens: int, seed: int
) -> None:
    """In float64, each loss divided by the counts of the whole step: its loss and all gradients."""
    rng = np.random.default_rng(seed)
    samples = [make_sample(length, rng) for length in lengths]
    for sample in samples:
        sample["labels"][0] = 9  # there is something to predict
        sample["input_ids"] = 5 + sample["input_ids"] % (CHARACTERS - 5)
    model = build(GlyphCRMForPreTraining, atlas).double().train()
    padded = [padded_batch(samples[i : i + 3]) for i in range(0, len(samples), 3)]
    found = step(model, PackedCollator(tokens, 40)(samples))
    assert_same(found, step(model, padded))


def step(model: Any, batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    model.zero_grad()
    names = {"mlm_loss": "labels", "nsp_loss": "next_sentence_label"}
    counts = [{name: int((batch[key] != IGNORED_LABEL).sum()) for name, key in names.items()} for batch in batches]
    total: Any = 0.0
    for batch, count in zip(batches, counts, strict=True):
        outputs = model(**batch)
        loss = sum(outputs[name] * count[name] / sum(c[name] for c in counts) for name in names)
        loss.backward()
        total += loss.detach()
    return {"loss": total} | gradients_of(model)


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(st.integers(1, 6), min_size=1, max_size=6), read=st.lists(st.integers(1, 6), min_size=6, max_size=6)
)
def test_a_mask_does_what_separate_sequences_do(asked: list[int], read: list[int]) -> None:
    """Empty sequences at the end belong to no token."""
    read = read[: len(asked)]
    ends = [torch.tensor([0, *itertools.accumulate(lengths), *[sum(lengths)] * 2]).int() for lengths in (asked, read)]
    sequences = Sequences(*ends, max(asked), max(read))
    generator = torch.Generator().manual_seed(sum(asked))
    query, key, value = (
        torch.randn(1, 2, sum(n), 4, generator=generator, dtype=torch.float64) for n in (asked, read, read)
    )
    found = WAYS["masked"](query, key, value, sequences, 0.5, 0.0, "auto")
    torch.testing.assert_close(found, WAYS["sequences"](query, key, value, sequences, 0.5, 0.0, "auto"))
    assert sequence_numbers(ends[0], sum(asked)).tolist() == [i for i, n in enumerate(asked) for _ in range(n)]


def test_which_way_is_taken_where(monkeypatch: pytest.MonkeyPatch) -> None:
    half, bfloat, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    for capability, expected in {
        (9, 0): {half: "flash", bfloat: "flash", single: "efficient", double: "masked"},
        (8, 0): {half: "flash", bfloat: "flash", single: "efficient", double: "masked"},
        (7, 5): {half: "efficient", bfloat: "masked", single: "efficient", double: "masked"},
    }.items():
        monkeypatch.setattr(packed_attention, "_capability", lambda _, found=capability: found)
        assert {dtype: packed_way(gpu, dtype, 64) for dtype in expected} == expected
        assert packed_way(gpu, half, 20) == "masked"
    assert packed_way(gpu, half, 512) == "efficient"
    assert packed_way(cpu, single, 64) == "sequences" and packed_way(torch.device("mps"), half, 64) == "masked"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert packed_way(gpu, half, 64) == "masked"
    monkeypatch.undo()
    monkeypatch.setattr(packed_attention, "is_traced", lambda: True)
    monkeypatch.setattr(packed_attention, "_capability", lambda _: (9, 0))
    assert [packed_way(gpu, dtype, 64) for dtype in (half, single)] == ["flash", "masked"]
    assert packed_way(cpu, single, 64) == "masked"


def test_a_row_may_be_shorter_than_the_longest_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row of a step often is; the backward of PyTorch's memory-efficient attention would refuse it."""
    seen: list[Any] = []

    def forward(*arguments: Any, scale: float) -> tuple[Tensor]:
        seen.extend(arguments)
        return (arguments[0],)

    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", forward)
    query, key = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 5, 8)
    ends = torch.tensor([0, 3, 3], dtype=torch.int32), torch.tensor([0, 5, 5], dtype=torch.int32)
    found = WAYS["efficient"](query, key, key, Sequences(*ends, 512, 4), 1.0, 0.1, "auto")
    assert found.shape == (1, 3, 2, 8) and seen[4] is ends[0] and seen[5] is ends[1]
    assert seen[6:] == [3, 4, 0.1, 0, False]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read of the mask, and the fused attention is an exact stand-in."""
    monkeypatch.setattr(packing, "is_at_hand", lambda _: False)
    for module in (packing, packed_attention):
        monkeypatch.setattr(module, "packed_way", lambda *_: "flash")
    monkeypatch.setitem(WAYS, "flash", WAYS["masked"])


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("model_class", HEADS.values(), ids=lambda head: head.__name__)
@pytest.mark.parametrize("is_full", [False, True])
def test_a_padded_batch_is_packed_by_its_token_index(
    model_class: type[GlyphCRMPreTrainedModel], is_full: bool, atlas: GlyphAtlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.ones_like(MASK) if is_full else torch.cat([MASK[:5], MASK[:1]])
    model = build(model_class, atlas).double()
    ids = torch.randint(5, CHARACTERS, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    inputs = {"attention_mask": mask} | labels_of(model_class)
    inputs["glyph_ids"], inputs["glyph_index"] = ids.unique(return_inverse=True)
    expected = results(model, inputs | {"output_hidden_states": True})
    seen: list[Any] = []
    monkeypatch.setitem(WAYS, "flash", lambda *a: seen.append(a[3]) or WAYS["masked"](*a))
    index = mask.flatten().nonzero()[:, 0]
    assert_same(results(model, inputs | {"token_index": index}), expected)
    assert len(seen) == 3 and all(s.max_length_k == 7 and len(s.cu_seq_lens_k) == 7 for s in seen)
    assert seen[0].cu_seq_lens_q[-1] == len(index)
    seen.clear()
    assert_same(results(model, inputs), expected)
    assert not seen  # nobody counted the tokens: a mask, and no wait
    del inputs["glyph_ids"], inputs["glyph_index"]
    assert_same(results(model, inputs | {"input_ids": ids}), expected)
    assert len(seen) == 3  # the host waits for the distinct characters, and so may wait for the number of tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("model_class", HEADS.values(), ids=lambda head: head.__name__)
def test_nothing_looks_at_values(
    model_class: type[GlyphCRMPreTrainedModel],
    form: str,
    dtype: torch.dtype,
    atlas: GlyphAtlas,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the device without values: all of PyTorch's operators but kernels, forward and, in 16 bits, backward."""
    if model_class in PADDED_HEADS and form == "packed":
        pytest.skip("reads padded batches")
    way = "efficient" if dtype == torch.float32 else "flash"
    for module in (packing, packed_attention):
        monkeypatch.setattr(module, "packed_way", lambda *_: way)
    model, batch = on_meta(model_class, form, atlas, dtype)
    outputs = model(**batch)
    if dtype != torch.float32:  # PyTorch's description of the other backward lacks an argument
        outputs.loss.backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith("glyphcrm.blocks.0"))
    logits = next(value for name, value in outputs.items() if "logits" in name)
    rows = 4 if model_class in (GlyphCRMForPreTraining, GlyphCRMForMaskedLM) else 3
    assert logits.shape[-2 if logits.dim() == 2 else 0] in (rows, 1) and outputs.loss.shape == ()


@pytest.mark.parametrize(
    ("model_class", "form"), [(GlyphCRMForPreTraining, "packed"), (GlyphCRMForSequenceClassification, "padded")]
)
def test_no_graph_break_around_flash_attention(
    model_class: type[GlyphCRMPreTrainedModel], form: str, atlas: GlyphAtlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (packing, packed_attention):
        monkeypatch.setattr(module, "packed_way", lambda *_: "flash")
    model, batch = on_meta(model_class, form, atlas, torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(**batch).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith("glyphcrm.blocks.0"))


def on_meta(model_class: type[GlyphCRMPreTrainedModel], form: str, atlas: GlyphAtlas, dtype: torch.dtype) -> Any:
    """A model with dropout and a batch of 3 sequences, 20 tokens of 27 places; 4 to predict."""
    config = preset("nano", vocab_size=40, num_glyphs=len(atlas), kernel_backend="reference")
    model = model_class(config).to(device="meta", dtype=dtype).train()
    shape = (3, 9) if form == "padded" else (1, 20)
    batch: dict[str, Any] = {
        "glyph_ids": torch.zeros(7, dtype=torch.int64),
        "glyph_index": torch.zeros(shape, dtype=torch.int64),
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.zeros(shape if model_class is GlyphCRMForTokenClassification else 3, dtype=torch.int64),
    }
    if model_class in (GlyphCRMForPreTraining, GlyphCRMForMaskedLM):
        batch |= {name: torch.zeros(4, dtype=torch.int64) for name in ("labels", "prediction_index")}
    if model_class is GlyphCRMForPreTraining:
        batch["next_sentence_label"] = torch.zeros(3, dtype=torch.int64)
    if model_class is GlyphCRMForQuestionAnswering:
        batch |= dict.fromkeys(("start_positions", "end_positions"), batch["labels"])
        del batch["labels"]
    if form == "padded":
        batch |= {"attention_mask": torch.ones(shape), "token_index": torch.arange(20)}
    else:
        batch["cu_seq_lens_q"] = torch.zeros(4, dtype=torch.int32)
    if model_class is GlyphCRMForMultipleChoice:  # three of one question
        batch |= {name: batch[name][None] for name in ("glyph_index", "token_type_ids", "attention_mask")}
        batch["labels"] = batch["labels"][:1]
    return model, {name: value.to("meta") for name, value in batch.items()}


def test_compiled_packed_rows_on_a_cpu(atlas: GlyphAtlas) -> None:
    """One graph for two ways to divide a row; without dropout equal to the eager model."""
    model = build(GlyphCRMForMaskedLM, atlas).eval()
    ids = torch.cat(sequences_of(atlas))[None]
    inputs: dict[str, Any] = {"labels": ids % 7, "prediction_index": torch.arange(130)}
    inputs["glyph_ids"], inputs["glyph_index"] = ids.unique(return_inverse=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for ends in (ENDS, torch.tensor([0, 10, 70, 90, 120, 130]).int()):
            found, expected = (run(**inputs, cu_seq_lens_q=ends).logits for run in (compiled, model))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_dropout_of_a_packed_row_is_drawn_for_each_sequence(atlas: GlyphAtlas) -> None:
    config = preset("nano")
    attention = SelfAttention(config)
    ones = torch.ones(1, 2, 64, 16)
    sequences = Sequences(torch.tensor([0, 32, 64]).int(), torch.tensor([0, 32, 64]).int(), 32, 32)
    context, _ = sdpa_attention(attention, ones, ones, ones, None, scaling=0.0, dropout=0.5, **sequences._asdict())
    assert 0.5 < context.mean() < 1.5 and not torch.equal(context[:, :32], context[:, 32:])
