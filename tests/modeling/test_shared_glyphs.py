"""HanGlyph runs once for all micro-batches of a step, and no gradient changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.glyph_vectors import SharedGlyphs

Loss = Callable[[dict[str, Any]], Tensor]


def batch_of(rows: list[int], length: int, padding: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch of two sequences over these atlas rows, as the collator makes it; the second one is padded."""
    ids = torch.tensor(rows)[torch.randint(0, len(rows), (2, length), generator=generator)]
    mask = torch.ones_like(ids)
    if padding:
        ids[1, -padding:], mask[1, -padding:] = 0, 0
    glyph_ids, glyph_index = ids.unique(return_inverse=True)
    labels = torch.full_like(ids, -100)
    labels[:, 0] = ids[:, 0]
    return {
        "glyph_ids": glyph_ids,
        "glyph_index": glyph_index,
        "attention_mask": mask,
        "labels": labels,
        "next_sentence_label": torch.tensor([0, 1]),
    }


def gradients(model: GlyphCRMForPreTraining, run: Callable[[Loss], None]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of the batches, and the gradients that `run` leaves."""
    model.zero_grad()
    losses: list[float] = []

    def loss(arguments: dict[str, Any]) -> Tensor:
        found: Tensor = model(**arguments).loss
        losses.append(float(found))
        return found

    run(loss)
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    rows=st.lists(st.integers(1, 39), min_size=1, max_size=30, unique=True),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_batches_apart(
    atlas: GlyphAtlas, lengths: list[int], rows: list[int], seed: int
) -> None:
    """In float64, over batches of several lengths, with and without padding, that share few or all characters."""
    torch.manual_seed(0)
    config = preset("nano", vocab_size=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = GlyphCRMForPreTraining.from_atlas(config, atlas).double().train()
    generator = torch.Generator().manual_seed(seed)
    batches = [
        batch_of(rows[i % 3 :] or rows, length, i % 2 * (length // 2), generator) for i, length in enumerate(lengths)
    ]
    calls: list[int] = []
    hook = model.glyphcrm.hanglyph.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))

    def apart(loss: Loss) -> None:
        for batch in batches:
            loss(batch).backward()

    def shared(loss: Loss) -> None:
        glyphs = SharedGlyphs(model.glyphcrm, batches)
        for batch in batches:
            loss(glyphs.arguments(batch)).backward()
        glyphs.backward()

    expected_losses, expected = gradients(model, apart)
    calls.clear()
    found_losses, found = gradients(model, shared)
    hook.remove()
    assert calls == [len(torch.cat([batch["glyph_ids"] for batch in batches]).unique())]
    assert found_losses == pytest.approx(expected_losses, rel=1e-10)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-9 * (1e-3 + expected[name].norm()), name


def test_bfloat16_is_summed_in_float32(model: GlyphCRMForPreTraining) -> None:
    """What reaches HanGlyph is the sum of the batches' gradients, not rounded after each."""
    model.train()
    batch = batch_of(list(range(5, 25)), 6, 0, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        glyphs = SharedGlyphs(model.glyphcrm, [batch] * 3)
    assert {made.dtype for made in glyphs._made} == {torch.bfloat16}
    weights = torch.tensor([1.0, 2.0**-10, 2.0**-10])
    for weight in weights:
        vectors = glyphs.arguments(batch)["glyph_vectors"]
        assert {v.dtype for v in vectors} == {torch.bfloat16}
        sum((v.float() * weight).sum() for v in vectors).backward()  # type: ignore[union-attr]
    for leaf in glyphs._leaves:
        assert leaf.grad is not None and leaf.grad.dtype == torch.float32
        assert leaf.grad.unique().tolist() == [1 + 2.0**-9]
    glyphs.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.glyphcrm.hanglyph.parameters())
