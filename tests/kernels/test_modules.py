"""GlyphStem and GlyphConv as others would use them: in the place of PyTorch's layers."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from glyphcrm_kernels import GlyphConv, GlyphStem, glyph_stem_conv, unpack_bits
from torch import Tensor, nn

from glyphcrm.modeling.hanglyph import position_map
from tests.kernels.checks import DEVICE, relative_rms


def test_they_are_made_where_and_as_asked_for_with_the_weights_of_a_convolution() -> None:
    made = GlyphStem(4, device="meta", dtype=torch.bfloat16), GlyphConv(4, 8, 3, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for module in made for p in module.parameters())
    assert made[0].position_map.is_meta and made[0].position_map.dtype == torch.float32
    for layer, plain in ((GlyphStem(4), nn.Conv2d(3, 4, 3)), (GlyphConv(4, 8, 5, bias=False), nn.Conv2d(4, 8, 5))):
        missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
        assert not missing and unexpected == ([] if layer.bias is not None else ["bias"])
    assert "padding=(2, 2), relu=True, pool=False" in repr(GlyphConv(4, 4, 5, padding=2, relu=True))


@pytest.mark.parametrize("assign", [False, True])
def test_a_stem_from_the_meta_device_has_its_position_channels_once_it_has_weights(assign: bool) -> None:
    channels = torch.rand(2, 48, 48)
    for given in (None, channels):
        whole = GlyphStem(4, given)
        with torch.device("meta"):
            empty = GlyphStem(4, given)
        again = empty if assign else pickle.loads(pickle.dumps(empty.to_empty(device="cpu")))
        again.load_state_dict(whole.state_dict(), assign=assign)
        assert torch.equal(again.position_map, whole.position_map)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_residual_block_of_them_is_one_of_convolutions(backend: str) -> None:
    """The stem and 9x9 convolutions of HanGlyph: outputs and the gradients of all weights."""
    torch.manual_seed(0)
    stem = GlyphStem(4)
    layers = [GlyphConv(4, 4, 9, relu=True), GlyphConv(4, 4, 9, bias=False), GlyphConv(4, 4, 9, relu=True, pool=True)]
    block = nn.ModuleList([stem, *layers]).to(DEVICE)
    bitmaps = torch.randint(0, 256, (7, 288), dtype=torch.uint8, device=DEVICE)
    rows = torch.tensor([5, 0, 3], device=DEVICE)

    def ours() -> Tensor:
        activation, shortcut = stem(rows, bitmaps, backend=backend)
        first, second, third = layers
        x = second(first(activation, backend=backend), backend=backend)
        return third(x, shortcut, backend=backend)

    def plain() -> Tensor:
        # float64, and the position channels that the model has
        stem_weights, *weights = ((w.double(), None if b is None else b.double()) for w, b in parameters)
        channels = position_map("paper").to(DEVICE).double().expand(3, -1, -1, -1)
        pictures = torch.cat([unpack_bits(bitmaps[rows], torch.float64), channels], 1)
        activation = F.relu(F.conv2d(pictures, *stem_weights, padding=1))
        x = F.conv2d(F.relu(F.conv2d(activation, *weights[0])), *weights[1])
        return F.max_pool2d(F.relu(F.conv2d(x, *weights[2]) + F.max_pool2d(activation, 2)), 2)

    parameters = [(layer.weight, layer.bias) for layer in block]
    results = []
    for call in (ours, plain):
        y = call()
        results.append([y, *torch.autograd.grad(y.square().sum(), list(block.parameters()))])
    assert all(relative_rms(found, true) < 2e-6 for found, true in zip(*results, strict=True))


@pytest.mark.parametrize("backend", ["auto", "triton", "cpu", "reference"])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [3, 9])
def test_what_a_convolution_returns_is_channels_last(size: int, pool: bool, backend: str) -> None:
    """Whatever the memory order of the input: its pixels can be looked at as rows of channels."""
    x = torch.randn(2, 4, 12, 12, device=DEVICE)
    layer = GlyphConv(4, 8, size, pool=pool).to(DEVICE)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
        try:
            y = layer(given, backend=backend)
        except ValueError as error:  # another kind of machine
            pytest.skip(str(error))
        assert y.permute(0, 2, 3, 1).view(-1, 8).shape[0] == y.numel() // 8


@pytest.mark.parametrize("backend", ["auto", "triton", "cpu", "reference"])
@pytest.mark.parametrize("what", ["convolution", "pooled", "stem", "stem and convolution"])
def test_results_can_be_changed_in_place(what: str, backend: str) -> None:
    """As `nn.ReLU(inplace=True)` and ``+=`` do; what is not saved for the backward, as with PyTorch's own layers."""
    torch.manual_seed(0)
    stem, layer = GlyphStem(4).to(DEVICE), GlyphConv(4, 4, 9, pool=what == "pooled").to(DEVICE)
    bitmaps = torch.randint(0, 256, (7, 288), dtype=torch.uint8, device=DEVICE)
    rows, x = torch.tensor([5, 0], device=DEVICE), torch.randn(2, 4, 10, 10, device=DEVICE)

    def result() -> Tensor:
        if what == "stem":
            return stem(rows, bitmaps, backend=backend)[1]
        if what == "stem and convolution":
            parameters = (stem.weight, stem.bias, stem.position_map, layer.weight, layer.bias)
            return glyph_stem_conv(rows, bitmaps, *parameters, backend=backend)[1]
        return layer(x, backend=backend)

    module = layer if what in ("convolution", "pooled") else stem
    try:
        y = result()
    except ValueError as error:  # another kind of machine
        pytest.skip(str(error))
    y += 0.1
    changed = nn.ReLU(inplace=True)(y)
    plain = F.relu(result() + 0.1)
    assert changed is y and torch.equal(changed, plain)
    found, expected = (torch.autograd.grad(t.square().sum(), list(module.parameters())) for t in (changed, plain))
    assert all(map(torch.equal, found, expected))
