"""HanGlyph in pieces, its stem drawn again for the backward: the same gradients, less memory, no silent mistake."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from glyphcrm_kernels import glyph_conv, glyph_stem
from glyphcrm_kernels._shared import buffers, cpu_library
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining, hanglyph
from glyphcrm.modeling.hanglyph import HanGlyph

redrawn_here = pytest.mark.skipif(cpu_library.load() is None, reason="installed without a C compiler")


@pytest.fixture
def characters(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> tuple[HanGlyph, Tensor, Tensor]:
    rows = torch.arange(min(11, len(atlas)))
    return model.glyphcrm.hanglyph.float(), rows, model.glyphcrm.glyph_table.bitmaps


@pytest.fixture
def large_buffers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows by a weak reference to each buffer of 48 x 48 pixels an image that the operators ask for."""
    seen: list[Any] = []

    def watched(empty: Callable[..., Tensor], first: int) -> Callable[..., Tensor]:
        """Return what makes the same tensors; height and width are the sizes from the `first` on."""

        def made(*shape: int, **options: Any) -> Tensor:
            buffer = empty(*shape, **options)
            if len(shape) == 4 and shape[first : first + 2] == (48, 48):
                seen.append(weakref.ref(buffer.untyped_storage()))
            return buffer

        return made

    monkeypatch.setattr(buffers, "empty", watched(buffers.empty, 1))
    monkeypatch.setattr(buffers, "empty_nhwc", watched(buffers.empty_nhwc, 2))
    return seen


def gradients_of(module: HanGlyph, rows: Tensor, bitmaps: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    vectors = module(rows, bitmaps)
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(part.shape, generator=generator).to(part) for part in vectors]
    torch.autograd.backward(list(vectors), cotangents)
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    return found | dict(zip(("vector", "skip1", "skip2"), (part.detach() for part in vectors), strict=True))


def stem_then_convolution(*tensors: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """What keeps the activation between the two."""
    *stem, weight, bias = tensors
    activation, shortcut = glyph_stem(*stem, backend=backend)
    return glyph_conv(activation, weight, bias, relu=True, backend=backend), shortcut


@redrawn_here
def test_drawing_again_changes_no_bit(
    characters: tuple[HanGlyph, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, large_buffers: list[Any]
) -> None:
    redrawn = gradients_of(*characters)
    assert len(large_buffers) == 3  # drawn, drawn again, its gradient
    monkeypatch.setattr(hanglyph, "glyph_stem_conv", stem_then_convolution)
    kept = gradients_of(*characters)
    assert len(large_buffers) == 5  # drawn, its gradient
    for name in kept:
        assert torch.equal(redrawn[name], kept[name]), name


@pytest.mark.parametrize("piece", [1, 4, 10])
def test_pieces_give_the_same_in_float64(
    characters: tuple[HanGlyph, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    module, rows, bitmaps = characters
    module = module.double()
    whole = gradients_of(module, rows, bitmaps)
    monkeypatch.setattr(hanglyph, "CPU_PIECE", piece)
    in_pieces = gradients_of(module, rows, bitmaps)
    for name in whole:
        torch.testing.assert_close(in_pieces[name], whole[name], rtol=1e-10, atol=1e-12, msg=name)


@redrawn_here
def test_no_activation_of_the_stem_outlives_the_forward(
    characters: tuple[HanGlyph, Tensor, Tensor], large_buffers: list[Any]
) -> None:
    vectors = characters[0](*characters[1:])
    gc.collect()
    assert len(large_buffers) == 1 and large_buffers[0]() is None
    sum(part.sum() for part in vectors).backward()
    gc.collect()
    assert len(large_buffers) == 3 and all(buffer() is None for buffer in large_buffers)


@redrawn_here
def test_a_changed_parameter_changes_no_gradient_unseen(characters: tuple[HanGlyph, Tensor, Tensor]) -> None:
    """The stem is drawn again from copies of its taps; the convolution's weight is not copied."""
    module, rows, bitmaps = characters
    expected, found = [], []
    for gradients, factor in ((expected, 1), (found, 2)):
        vectors = module(rows, bitmaps)
        with torch.no_grad():
            module.stem.weight.mul_(factor)
        gradients.extend(torch.autograd.grad(sum(part.sum() for part in vectors), list(module.parameters())))
    assert all(map(torch.equal, found, expected))
    vectors = module(rows, bitmaps)
    with torch.no_grad():
        module.block1[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(part.sum() for part in vectors).backward()


@redrawn_here
def test_checkpointing_gives_the_same_gradients(characters: tuple[HanGlyph, Tensor, Tensor]) -> None:
    module, rows, bitmaps = characters
    vectors = checkpoint(module, rows, bitmaps, use_reentrant=False)
    found = torch.autograd.grad(sum(part.sum() for part in vectors), list(module.parameters()))
    expected = torch.autograd.grad(sum(part.sum() for part in module(rows, bitmaps)), list(module.parameters()))
    assert all(map(torch.equal, found, expected))


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
