"""Rows without padding and a last block for [CLS] alone: the outputs and gradients of the padded, whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_attention_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import (
    GlyphCRMForMaskedLM,
    GlyphCRMForMultipleChoice,
    GlyphCRMForPreTraining,
    GlyphCRMForQuestionAnswering,
    GlyphCRMForSequenceClassification,
    GlyphCRMForTokenClassification,
    GlyphCRMPreTrainedModel,
)
from glyphcrm.modeling.attention import SelfAttention, sdpa_attention
from glyphcrm.modeling.heads import HEADS, GlyphCRMHead
from glyphcrm.modeling.packing import find_packing, first_states
from tests.classic import VOCABULARY_SIZE
from tests.versions import checkpoint_activations

# Right, left and no padding, a hole, one token at the end, and nothing but padding.
MASK = torch.tensor(
    [
        [1, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
)
ROWS = MASK.any(1)


@pytest.fixture
def batch(atlas: GlyphAtlas) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(atlas), MASK.shape, generator=generator)
    return {
        "input_ids": ids * MASK,
        "attention_mask": MASK,
        "token_type_ids": torch.randint(0, 2, MASK.shape, generator=generator),
        "position_ids": torch.randint(0, 64, MASK.shape, generator=generator),
    }


def build(model_class: type[GlyphCRMPreTrainedModel], atlas: GlyphAtlas, **settings: Any) -> Any:
    """A nano model without dropout, with weights away from their initial ones and zeros."""
    config = preset("nano", vocab_size=VOCABULARY_SIZE, **settings)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    model = model_class.from_atlas(config, atlas)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def results(model: Any, inputs: dict[str, Any], **settings: Any) -> dict[str, Tensor]:
    """Loss, logits of real tokens or sequences, and all gradients of one pass in training mode."""
    model.train().zero_grad()
    has_choices = isinstance(model, GlyphCRMForMultipleChoice)
    outputs = model(**as_choices(inputs) if has_choices else inputs, **settings)
    outputs.loss.backward()
    if has_choices:
        outputs.logits = outputs.logits.flatten()
    logits = {
        name: value[MASK.bool()] if value.shape[:2] == MASK.shape else value[ROWS] if len(value) == len(MASK) else value
        for name, value in outputs.items()
        if "logits" in name
    }
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": outputs.loss.detach(), **logits, **gradients}


def as_choices(inputs: dict[str, Any]) -> dict[str, Any]:
    """Each row of a batch as one of two choices."""
    return {
        name: value.unflatten(0, (-1, 2)) if isinstance(value, Tensor) and value.shape == MASK.shape else value
        for name, value in inputs.items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 50
    for name, truth in expected.items():
        assert (found[name] - truth).norm() <= 1e-5 * (1e-3 + truth.norm()), name


def labels_of(model_class: type[GlyphCRMPreTrainedModel]) -> dict[str, Tensor]:
    of_rows = torch.tensor([0, 1, 1, 0, 1, -100])
    of_tokens = torch.where(MASK.bool(), torch.arange(MASK.numel()).view_as(MASK) % 2 + 5, -100)
    if model_class is GlyphCRMForPreTraining:
        index = (of_tokens.flatten() != -100).nonzero().flatten()
        return {"labels": of_tokens, "prediction_index": index, "next_sentence_label": of_rows}
    if model_class is GlyphCRMForMaskedLM:
        return {"labels": of_tokens}
    if model_class is GlyphCRMForQuestionAnswering:
        # One outside of the sequence counts for nothing.
        first = torch.where(ROWS, MASK.argmax(1), MASK.shape[1])
        return {"start_positions": first, "end_positions": first}
    if model_class is GlyphCRMForTokenClassification:
        return {"labels": torch.where(of_tokens > 0, of_tokens - 5, -100)}
    if model_class is GlyphCRMForMultipleChoice:
        return {"labels": torch.tensor([0, 1, -100])}
    return {"labels": of_rows}


@pytest.mark.parametrize("model_class", HEADS.values(), ids=lambda head: head.__name__)
@pytest.mark.parametrize("given_positions", [True, False])
def test_outputs_and_gradients_are_those_of_padded_rows(
    model_class: type[GlyphCRMHead], given_positions: bool, atlas: GlyphAtlas, batch: dict[str, Tensor]
) -> None:
    """In float64; recorded hidden states make the model read the batch as it is, all positions in every block."""
    model = build(model_class, atlas).double()
    if not given_positions:
        del batch["position_ids"], batch["token_type_ids"]
    inputs = batch | labels_of(model_class)
    seen = lengths_of_blocks(model)
    found = results(model, inputs)
    assert seen == [21, 21, 5 if model_class.reads_first_token else 21]
    seen.clear()
    expected = results(model, inputs, output_hidden_states=True)
    assert seen == [7, 7, 7]
    assert_same(found, expected)
    distinct = {**inputs}
    distinct["glyph_ids"], distinct["glyph_index"] = distinct.pop("input_ids").unique(return_inverse=True)
    assert_same(results(model, distinct), expected)


def lengths_of_blocks(model: Any) -> list[int]:
    """A list that grows by the length of every block's output."""
    seen: list[int] = []
    for block in model.glyphcrm.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output.shape[1]))
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", [True, False])
def test_the_last_block_for_the_first_token_alone(
    attention: str, padding: bool, atlas: GlyphAtlas, batch: dict[str, Tensor]
) -> None:
    """Padded rows, with a mask and without; left padding is no [CLS]."""
    model = build(GlyphCRMForSequenceClassification, atlas).double()
    model.set_attn_implementation(attention)
    inputs = batch | labels_of(GlyphCRMForSequenceClassification)
    if not padding:
        inputs |= {"attention_mask": torch.ones_like(MASK)}
    seen = lengths_of_blocks(model)
    found = results(model, inputs)
    assert seen[-1] == (5 if padding and attention == "sdpa" else 1)
    expected = results(model, inputs, output_hidden_states=True)
    assert_same(found, expected)
    base = model.glyphcrm
    inputs.pop("labels")
    whole = base(**inputs, output_hidden_states=True)
    asked = base(**inputs, first_token_only=True)
    alone = asked.last_hidden_state
    assert alone.shape == (6, 1, model.config.hidden_size) and torch.equal(asked.first_states, alone[:, 0])
    firsts = [whole.last_hidden_state[i, m.nonzero()[0, 0]] for i, m in enumerate(inputs["attention_mask"]) if m.any()]
    torch.testing.assert_close(alone[inputs["attention_mask"].any(1), 0], torch.stack(firsts))
    recorded = base(**inputs, first_token_only=True, output_hidden_states=True)
    assert [h.shape[1] for h in recorded.hidden_states] == [7] * 4
    assert torch.equal(recorded.last_hidden_state, whole.last_hidden_state)
    torch.testing.assert_close(recorded.first_states, first_states(whole.last_hidden_state, inputs["attention_mask"]))
    assert whole.first_states is None


def test_padding_is_zero_and_the_mask_of_a_caller_is_kept(atlas: GlyphAtlas, batch: dict[str, Tensor]) -> None:
    base = build(GlyphCRMForPreTraining, atlas).glyphcrm.eval()
    states = base(**batch).last_hidden_state
    assert states.shape == (6, 7, 32) and (states[~MASK.bool()] == 0).all()
    square = MASK[:, None, None, :].bool() & torch.ones(7, 7, dtype=torch.bool).tril()
    square |= torch.eye(7, dtype=torch.bool)
    seen = lengths_of_blocks(type("", (), {"glyphcrm": base}))
    causal = base(**batch | {"attention_mask": square}).last_hidden_state
    first = base(**batch | {"attention_mask": square}, first_token_only=True).last_hidden_state
    assert seen == [7, 7, 7, 7, 7, 1]
    torch.testing.assert_close(first, causal[:, :1])
    # A token that attends backwards alone is not moved by what follows.
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][2, 4:] = 9
    again = base(**changed | {"attention_mask": square}).last_hidden_state
    torch.testing.assert_close(again[2, :4], causal[2, :4])


def test_embeddings_instead_of_characters(atlas: GlyphAtlas, batch: dict[str, Tensor]) -> None:
    base = build(GlyphCRMForPreTraining, atlas).glyphcrm.double()
    del batch["input_ids"]
    embeds = torch.randn(6, 7, 32, dtype=torch.float64, requires_grad=True)
    gradients = []
    for settings_ in ({}, {"output_hidden_states": True}):
        states = base(inputs_embeds=embeds, **batch, **settings_).last_hidden_state[MASK.bool()]
        gradients.append((states, *torch.autograd.grad(states.square().sum(), embeds)))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradient_checkpointing_of_packed_rows(atlas: GlyphAtlas, batch: dict[str, Tensor]) -> None:
    """Dropout is drawn again for the same tokens."""
    model = build(GlyphCRMForSequenceClassification, atlas)
    for module in model.modules():
        if isinstance(module, nn.Dropout) or hasattr(module, "scaling"):
            module.p = 0.3
    inputs = batch | labels_of(GlyphCRMForSequenceClassification)
    torch.manual_seed(1)
    expected = results(model, inputs)
    checkpoint_activations(model)
    torch.manual_seed(1)
    found = results(model, inputs)
    assert all(torch.equal(found[name], truth) for name, truth in expected.items())


def test_flash_attention_gets_rows_without_padding(
    atlas: GlyphAtlas, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own call of FlashAttention's function for sequences of several lengths, whose stand-in is exact."""
    seen: list[tuple[list[int], list[int], int, int]] = []

    # transformers passes on what it finds in the signature.
    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
        **_: Any,
    ) -> Tensor:
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and not causal
        seen.append((cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), max_seqlen_q, max_seqlen_k))
        contexts = []
        for i in range(len(cu_seqlens_q) - 1):
            asks, reads = slice(*cu_seqlens_q[i : i + 2].tolist()), slice(*cu_seqlens_k[i : i + 2].tolist())
            weights = torch.einsum("qhd,khd->hqk", q[asks], k[reads]) * softmax_scale
            contexts.append(torch.einsum("hqk,khd->qhd", weights.softmax(-1), v[reads]))
        return torch.cat(contexts)

    def no_flash(*_: Any, **__: Any) -> Any:
        raise AssertionError("padding was left in")

    monkeypatch.setattr(flash_attention_utils, "_loaded_implementation", None)
    functions = (no_flash, varlen, no_flash, no_flash, no_flash)
    monkeypatch.setattr(flash_attention_utils, "_lazy_imports", lambda *_, **__: functions)
    model = build(GlyphCRMForSequenceClassification, atlas)
    inputs = batch | labels_of(GlyphCRMForSequenceClassification)
    expected = results(model, inputs)
    model.config._attn_implementation = "flash_attention_2"
    assert_same(results(model, inputs), expected)
    whole = [0, 4, 9, 16, 20, 21]
    assert seen == [(whole, whole, 7, 7), (whole, whole, 7, 7), ([0, 1, 2, 3, 4, 5], whole, 1, 7)]


@pytest.mark.parametrize("implementation", ["eager", "flex_attention", "sdpa"])
def test_what_is_packed(implementation: str) -> None:
    config = preset("nano")
    config._attn_implementation = implementation
    tokens = torch.zeros(6, 7)
    if implementation != "sdpa":
        assert find_packing(MASK, tokens, config) is None
        return
    packing = find_packing(MASK, tokens, config)
    assert packing is not None and packing.boundaries.tolist() == [0, 4, 9, 16, 20, 21] and packing.longest == 7
    for mask in (None, torch.ones_like(MASK), torch.zeros_like(MASK), MASK[:1], MASK[:, None, None]):
        assert find_packing(mask, tokens, config) is None
    assert find_packing(MASK, tokens.to("meta"), config) is None
    for dtype in (torch.bool, torch.float32, torch.uint8):
        other = find_packing(MASK.to(dtype), tokens, config)
        assert other is not None and torch.equal(other.places, packing.places)


def test_compiled_graphs_do_not_depend_on_lengths(atlas: GlyphAtlas, batch: dict[str, Tensor]) -> None:
    """One graph serves two batches of different lengths."""
    model = build(GlyphCRMForSequenceClassification, atlas).eval()
    batch["glyph_ids"], batch["glyph_index"] = batch.pop("input_ids").unique(return_inverse=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        for mask in (MASK, MASK.flip(1)):
            inputs = batch | {"attention_mask": mask}
            torch.testing.assert_close(compiled(**inputs).logits[ROWS], model(**inputs).logits[ROWS])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=7).filter(any),
    heads=st.integers(1, 3),
    data=st.data(),
)
def test_packing_and_attention_inside_each_sequence(lengths: list[int], heads: int, data: st.DataObject) -> None:
    length = max(lengths) + data.draw(st.integers(0, 2))
    mask = torch.zeros(len(lengths), length, dtype=torch.int64)
    for row, n in enumerate(lengths):
        mask[row, data.draw(st.permutations(range(length)))[:n]] = 1
    config = preset("nano")
    config._attn_implementation = "sdpa"
    generator = torch.Generator().manual_seed(len(lengths))
    padded = torch.randn(len(lengths), length, 4 * heads, generator=generator, dtype=torch.float64)
    packing = find_packing(mask, padded, config)
    if mask.all():
        assert packing is None
        return
    assert packing is not None
    packed = packing.pack(padded)
    assert packed.shape == (1, sum(lengths), 4 * heads)
    assert torch.equal(packing.unpack(packed), padded * mask.unsqueeze(2))
    assert packing.positions()[0].tolist() == mask.nonzero()[:, 1].tolist()
    places, firsts = packing.first_tokens()
    first = firsts.unpack(packed[:, places[0]])
    assert torch.equal(first[:, 0], first_states(padded, mask) * mask.any(1, keepdim=True))

    query = packed.view(1, -1, heads, 4).transpose(1, 2)
    for queries in (packing, firsts):
        asking = query if queries is packing else query[:, :, places[0]]
        context, _ = sdpa_attention(
            SelfAttention(config), asking, query, query, None, scaling=0.5, **packing.attention_arguments(queries)
        )
        same = torch.eye(len(lengths), dtype=torch.bool)[[row for row, n in enumerate(lengths) for _ in range(n)]]
        inside = (same.double() @ same.double().T).bool()
        whole = torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=inside, scale=0.5)
        expected = whole.transpose(1, 2) if queries is packing else whole.transpose(1, 2)[:, places[0]]
        torch.testing.assert_close(context, expected)
