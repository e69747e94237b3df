"""HanGlyph in chunks, its stem drawn again for the backward: the same gradients, less memory, no silent mistake."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from glyphcrm_kernels import cpu_library
from torch import Tensor

from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining, hanglyph
from glyphcrm.modeling.hanglyph import HanGlyph

redrawn_here = pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")


@pytest.fixture
def characters(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> tuple[HanGlyph, Tensor, Tensor]:
    rows = torch.arange(min(11, len(atlas)))
    return model.glyphcrm.hanglyph.float(), rows, model.glyphcrm.glyph_table.bitmaps


def gradients_of(module: HanGlyph, rows: Tensor, bitmaps: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    vectors = module(rows, bitmaps)
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(part.shape, generator=generator).to(part) for part in vectors]
    torch.autograd.backward(list(vectors), cotangents)
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    return found | dict(zip(("vector", "skip1", "skip2"), (part.detach() for part in vectors), strict=True))


def test_drawing_again_changes_no_bit(
    characters: tuple[HanGlyph, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    redrawn = gradients_of(*characters)
    monkeypatch.setattr(hanglyph, "redrawing", lambda *_: nullcontext())
    kept = gradients_of(*characters)
    for name in kept:
        assert torch.equal(redrawn[name], kept[name]), name


@pytest.mark.parametrize("chunk", [1, 4, 10])
def test_chunks_give_the_same_in_float64(
    characters: tuple[HanGlyph, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    module, rows, bitmaps = characters
    module = module.double()
    whole = gradients_of(module, rows, bitmaps)
    monkeypatch.setattr(hanglyph, "CPU_CHUNK", chunk)
    chunked = gradients_of(module, rows, bitmaps)
    for name in whole:
        torch.testing.assert_close(chunked[name], whole[name], rtol=1e-10, atol=1e-12, msg=name)


@redrawn_here
def test_no_activation_of_the_stem_outlives_the_forward(
    characters: tuple[HanGlyph, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, rows, bitmaps = characters
    drawn = []
    stem = hanglyph.glyph_stem

    def watched(*arguments: object, **options: object) -> tuple[Tensor, Tensor]:
        activation, pooled = stem(*arguments, **options)
        drawn.append(weakref.ref(activation.untyped_storage()))
        return activation, pooled

    monkeypatch.setattr(hanglyph, "glyph_stem", watched)
    vectors = module(rows, bitmaps)
    gc.collect()
    assert len(drawn) == 1 and drawn[0]() is None
    sum(part.sum() for part in vectors).backward()
    assert len(drawn) == 2
    gc.collect()
    assert drawn[1]() is None


@redrawn_here
def test_a_changed_parameter_is_an_error(characters: tuple[HanGlyph, Tensor, Tensor]) -> None:
    module, rows, bitmaps = characters
    vectors = module(rows, bitmaps)
    with torch.no_grad():
        module.stem.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        sum(part.sum() for part in vectors).backward()


def test_autocast_keeps_the_activation_in_its_own_dtype(characters: tuple[HanGlyph, Tensor, Tensor]) -> None:
    """The backward runs outside of autocast, where the stem would be drawn in float32."""
    module, rows, bitmaps = characters
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = module(rows, bitmaps)
    sum(part.float().sum() for part in vectors).backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_the_graph_can_be_walked_twice(characters: tuple[HanGlyph, Tensor, Tensor]) -> None:
    module, rows, bitmaps = characters
    total = sum(part.sum() for part in module(rows, bitmaps))
    first, second = (torch.autograd.grad(total, list(module.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
