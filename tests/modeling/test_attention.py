"""Attention's dropout in C inside the model: what it replaces, and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from glyphcrm_kernels._shared import cpu_library
from glyphcrm_kernels.attention import cpu as attention_cpu
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining, GlyphCRMForSequenceClassification, GlyphCRMPreTrainedModel
from tests.classic import VOCABULARY_SIZE
from tests.versions import checkpoint_activations

NO_DROPOUT = 1e-9  # on, but below the smallest that 16 bits can hold
LENGTHS = {"packed": [9, 3, 1, 6], "whole rows": [9, 9, 9, 9]}

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows by the number of sequences in each call of the C functions' operator."""
    seen: list[Any] = []
    operator = attention_cpu._attention_cpu

    def spy(query: Tensor, *arguments: Any) -> Any:
        seen.append(len(arguments[-1] or query))
        return operator(query, *arguments)

    monkeypatch.setattr(attention_cpu, "_attention_cpu", spy)
    return seen


def build(model_class: type[GlyphCRMPreTrainedModel], atlas: GlyphAtlas, p: float) -> Any:
    config = preset("nano", vocab_size=VOCABULARY_SIZE)
    config.hidden_dropout_prob, config.attention_probs_dropout_prob = 0.0, p
    torch.manual_seed(0)
    model = model_class.from_atlas(config, atlas).train()
    with torch.no_grad():  # scores of some size
        for block in model.glyphcrm.blocks:
            block.attention.query.weight *= 20
    return model


def batch(atlas: GlyphAtlas, lengths: list[int]) -> dict[str, Tensor]:
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, len(atlas), mask.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids * mask, "attention_mask": mask}


def results(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = model(**inputs).loss
    loss.backward()
    return {"loss": loss.detach()} | gradients_of(model)


def gradients_of(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("model_class", [GlyphCRMForPreTraining, GlyphCRMForSequenceClassification])
def test_where_nothing_is_dropped_it_is_pytorchs_attention(
    model_class: type[GlyphCRMPreTrainedModel], lengths: list[int], atlas: GlyphAtlas, calls: list[Any]
) -> None:
    """Loss and all gradients; rows with and without padding; a last block of all tokens, and of [CLS] alone."""
    inputs = batch(atlas, lengths)
    labels = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 7, -100)
    inputs["labels"] = labels if model_class is GlyphCRMForPreTraining else torch.tensor([0, 1, 1, 0])
    expected = results(build(model_class, atlas, 0.0), inputs)
    assert not calls
    found = results(build(model_class, atlas, NO_DROPOUT), inputs)
    assert calls == [4, 4, 4]
    assert found.keys() == expected.keys() and len(found) > 50
    for name, truth in expected.items():
        assert (found[name] - truth).norm() <= 2e-5 * (1e-3 + truth.norm()), name


def test_it_runs_in_float32_training_with_dropout_and_sdpa_alone(atlas: GlyphAtlas, calls: list[Any]) -> None:
    inputs = batch(atlas, [9, 9])
    model = build(GlyphCRMForPreTraining, atlas, 0.1)
    model(**inputs)
    assert len(calls) == 3
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    model.eval()(**inputs)
    model.train().config.kernel_backend = "reference"
    model(**inputs)
    model.config.kernel_backend = "auto"
    causal = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    model(**inputs | {"attention_mask": causal})
    model(**inputs | {"attention_mask": None}, is_causal=True)
    model.set_attn_implementation("eager")
    model(**inputs)
    model.set_attn_implementation("sdpa")
    model.double()(**inputs)
    assert not calls
    model.float().config.kernel_backend = "cpu"
    model(**inputs)
    assert len(calls) == 3


def test_its_dropout_has_the_mean_of_no_dropout(atlas: GlyphAtlas, calls: list[Any]) -> None:
    """The first block's attention, over many masks, against the one without: within five standard errors."""
    model = build(GlyphCRMForPreTraining, atlas, 0.3)
    attention = model.glyphcrm.blocks[0].attention
    states = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.no_grad():
        many, _ = attention(states.expand(4000, -1, -1), None)
        plain, _ = attention.eval()(states, None)
    error = many.std(0) / 4000**0.5
    assert calls and ((many.mean(0) - plain[0]).abs() < 5 * error + 1e-6).all()
    assert (error > 1e-5).all()


@pytest.mark.parametrize("way", ["checkpointing", "compiled"])
def test_the_same_masks_under(way: str, atlas: GlyphAtlas, calls: list[Any]) -> None:
    inputs = batch(atlas, [9, 9])
    del inputs["attention_mask"]  # in a compiled graph nobody can look whether it masks anything
    inputs["labels"] = inputs["input_ids"] % 7
    inputs |= {"prediction_index": torch.arange(18), "next_sentence_label": torch.tensor([0, 1])}
    inputs["glyph_ids"], inputs["glyph_index"] = inputs.pop("input_ids").unique(return_inverse=True)
    model = build(GlyphCRMForPreTraining, atlas, 0.3)
    expected = results(model, inputs)
    if way == "checkpointing":
        checkpoint_activations(model)
        found = results(model, inputs)
        assert len(calls) == 9
    else:
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.manual_seed(5)
        model.zero_grad()
        loss = compiled(**inputs).loss
        loss.backward()
        found = {"loss": loss.detach()} | gradients_of(model)
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert (found[name] - truth).norm() <= 1e-5 * (1e-3 + truth.norm()), name


def test_one_compiled_graph_serves_batches_of_many_shapes(atlas: GlyphAtlas) -> None:
    model = build(GlyphCRMForPreTraining, atlas, 0.1)
    attention = model.glyphcrm.blocks[0].attention
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for rows, length in ((2, 9), (3, 12), (5, 7)):
        states = torch.randn(rows, length, 32, requires_grad=True)
        compiled(states, None)[0].sum().backward()
        assert states.grad is not None and states.grad.isfinite().all()
        counts.append(counter.frame_count)
    assert counts == [counts[0]] * 3 and counts[0] > 0
