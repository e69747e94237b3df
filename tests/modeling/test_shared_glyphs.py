"""HanGlyph runs once for all micro-batches of a step, and no gradient changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from torch import Tensor

from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.glyph_vectors import SharedGlyphs, ranks
from tests.robustness.processes import run_ranks

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
        losses.append(found.item())
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


# Characters, and for each process the lengths of its batches.
DIVISIONS = {
    "one process": (9, [[4, 6]]),
    "two": (9, [[5], [3, 4]]),
    "four, uneven shares, one without batches": (11, [[3, 5], [], [4], [2, 2, 6]]),
    "four, one of them without characters": (5, [[3], [4], [2], [5]]),
    "four, nothing summed": (11, [[3, 5], [2], [4], [2, 2, 6]]),
    "four, shares in another order": (11, [[3, 5], [2], [4], [2, 2, 6]]),
}
Batches = list[list[dict[str, Tensor]]]  # of each process


def one_of_the_processes(rank: int, folder: Path, model: GlyphCRMForPreTraining, divisions: dict[str, Batches]) -> None:
    """Save what this process gets of each division that has so many: gradients, and how many characters it encoded."""
    torch.set_num_threads(1)
    rows: list[int] = []
    model.glyphcrm.hanglyph.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    for number, (name, batches) in enumerate(divisions.items()):
        if rank >= len(batches):
            continue
        where = {"rank": rank, "world_size": len(batches), "timeout": timedelta(seconds=60)}
        dist.init_process_group("gloo", init_method=f"file://{folder / f'store{number}'}", **where)

        def shared(loss: Loss, own: list[dict[str, Tensor]] = batches[rank]) -> None:
            glyphs = SharedGlyphs(model.glyphcrm, own)
            for batch in own:
                loss(glyphs.arguments(batch)).backward()
            glyphs.backward()

        with pytest.MonkeyPatch.context() as patch:
            if name == "four, nothing summed":
                patch.setattr(
                    ranks, "reduce_scatter", lambda parts: [part.chunk(dist.get_world_size())[rank] for part in parts]
                )
            if name == "four, shares in another order":
                patch.setattr(ranks, "own_share", lambda ids: ids[rank :: dist.get_world_size()])
            rows.clear()
            _, found = gradients(model, shared)
        torch.save({"gradients": found, "rows": rows}, folder / f"{number}-{rank}.pt")
        dist.destroy_process_group()


def test_processes_divide_the_characters(atlas: GlyphAtlas, tmp_path: Path) -> None:
    """The sum over 1, 2 and 4 processes is what one has, in float64; two planted faults are no such sum."""
    torch.manual_seed(0)
    config = preset("nano", vocab_size=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = GlyphCRMForPreTraining.from_atlas(config, atlas).double().train()
    generator = torch.Generator().manual_seed(1)
    divisions: dict[str, Batches] = {}
    for name, (characters, lengths) in DIVISIONS.items():
        rows = torch.randperm(38, generator=generator)[:characters].add(1).tolist()
        divisions[name] = [[batch_of(rows, length, length // 3, generator) for length in own] for own in lengths]
    arguments = (tmp_path, model, divisions)
    run_ranks(one_of_the_processes, arguments, 4)

    for number, (name, batches) in enumerate(divisions.items()):
        together = [batch for own in batches for batch in own]
        _, expected = gradients(model, lambda loss, all_=together: [loss(batch).backward() for batch in all_])  # type: ignore[misc]
        found = [torch.load(tmp_path / f"{number}-{rank}.pt") for rank in range(len(batches))]
        distinct = len(torch.cat([batch["glyph_ids"] for batch in together]).unique())
        assert [one["rows"] for one in found] == [[math.ceil(distinct / len(batches))]] * len(batches)
        names = {parameter for one in found for parameter in one["gradients"]}
        assert names == expected.keys()
        # What is summed over processes must exist in all of them.
        hanglyph = {parameter for parameter in names if ".hanglyph." in parameter}
        assert all(hanglyph <= one["gradients"].keys() for one in found)
        worst = 0.0
        for parameter, gradient in expected.items():
            total = sum(one["gradients"].get(parameter, torch.zeros(())) for one in found)
            worst = max(worst, float((total - gradient).norm() / (1e-3 + gradient.norm())))
        if name in ("four, nothing summed", "four, shares in another order"):
            assert worst > 1e-2, name
        else:
            assert worst <= 1e-9, name
