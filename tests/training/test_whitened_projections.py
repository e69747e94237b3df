"""Steps in whitened coordinates against a plain linear layer that reads whitened features."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from glyphcrm.modeling.whitening import whitening_basis
from glyphcrm.training import whitened_projections
from glyphcrm.training.whitened_projections import DIRECTIONS, WhitenedProjections

RATE, STEPS = 1e-2, 5


class Projections(nn.Module):
    """What `WhitenedProjections` needs of a HanGlyph: three linear layers and their features."""

    def __init__(self, block1: Tensor, block2: Tensor) -> None:
        super().__init__()
        self.block1, self.block2 = block1, block2
        self.vector = nn.Linear(block2.shape[1], 6)
        self.skip1 = nn.Linear(block1.shape[1], 6)
        self.skip2 = nn.Linear(block2.shape[1], 6)

    def all_features(self, rows: Tensor, bitmaps: Tensor) -> tuple[Tensor, Tensor]:
        return self.block1[rows], self.block2[rows]


def mostly_alike(count: int, width: int) -> Tensor:
    """Features that are never negative, with a large common part and few directions of large variance."""
    scales, rotation = torch.logspace(0, -2, width), torch.linalg.qr(torch.randn(width, width)).Q
    return (3 + torch.randn(count, width) * scales @ rotation).relu()


@pytest.mark.parametrize(("count", "width"), [(200, 40), (30, 90), (1500, 1200)])
def test_the_basis_whitens(count: int, width: int) -> None:
    torch.manual_seed(0)
    features = mostly_alike(count, width)
    mean, directions = whitening_basis(features, 1000)
    white = (features.double() - mean) @ directions
    assert white.shape[1] == min(width, count - 1, 1000)
    torch.testing.assert_close(white.T @ white / count, torch.eye(white.shape[1]).double(), atol=1e-6, rtol=0)


def test_a_direction_without_variance_is_left_out() -> None:
    features = torch.randn(50, 4) @ torch.randn(4, 20)
    assert whitening_basis(features, 10).directions.shape == (20, 4)


def test_steps_are_those_of_a_layer_that_reads_whitened_features() -> None:
    torch.manual_seed(1)
    model = Projections(mostly_alike(40, 90), mostly_alike(40, 12))
    layers = [model.vector, model.skip1, model.skip2]
    start = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in layers]
    features = [model.block2, model.block1, model.block2]
    targets = [torch.randn(40, 6) for _ in layers]

    whitened = WhitenedProjections(model, torch.arange(40), torch.empty(0))  # type: ignore[arg-type]
    assert whitened.weights == {layer.weight for layer in layers}
    optimizer = torch.optim.AdamW(
        [{"params": [layer.bias for layer in layers]}, *whitened.groups(lr=RATE)], lr=RATE, weight_decay=0.0
    )
    whitened.attach(optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model.zero_grad()
        losses = [(layer(f) - t).square().mean() for layer, f, t in zip(layers, features, targets, strict=True)]
        torch.stack(losses).sum().backward()
        optimizer.step()

    for layer, f, t, (weight, bias) in zip(layers, features, targets, start, strict=True):
        mean, directions = whitening_basis(f, DIRECTIONS)
        white = (f.double() - mean) @ directions
        fixed = f.double() @ weight.double().T + bias.double()
        change = nn.Linear(white.shape[1], 6).double()
        nn.init.zeros_(change.weight)
        nn.init.zeros_(change.bias)
        plain = torch.optim.AdamW(change.parameters(), lr=RATE, weight_decay=0.0)
        for _ in range(STEPS):
            plain.zero_grad()
            (fixed + change(white) - t.double()).square().mean().backward()
            plain.step()
        expected = (fixed + change(white)).float()
        assert (expected - fixed.float()).abs().max() > RATE  # it moved
        torch.testing.assert_close(layer(f), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("directions", [1024, 9])
def test_a_run_that_continues_has_the_basis_of_its_start(directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever size: how many directions there are may have changed with the version."""
    torch.manual_seed(2)
    model = Projections(mostly_alike(40, 20), mostly_alike(40, 12))
    target = torch.randn(40, 6)

    def optimizer() -> torch.optim.Optimizer:
        whitened = WhitenedProjections(model, torch.arange(40), torch.empty(0))  # type: ignore[arg-type]
        new = torch.optim.AdamW([{"params": [model.skip1.bias]}, *whitened.groups(lr=RATE)], weight_decay=0.0)
        whitened.attach(new)
        return new

    def step(some: torch.optim.Optimizer) -> None:
        model.zero_grad()
        (model.skip1(model.block1) - target).square().mean().backward()
        some.step()

    first = optimizer()
    step(first)
    state = copy.deepcopy(first.state_dict())
    weights = copy.deepcopy(model.state_dict())
    model.block1[:, 3] = 0  # HanGlyph has learnt since; a feature has died, and with it a direction
    model.block2 *= 2
    step(first)
    undisturbed = model.skip1.weight.detach().clone()
    model.load_state_dict(weights)
    monkeypatch.setattr(whitened_projections, "DIRECTIONS", directions)
    monkeypatch.setattr(whitened_projections, "SHARE_OF_SAMPLE", 0.0)
    second = optimizer()
    second.load_state_dict(state)
    step(second)
    assert torch.equal(model.skip1.weight, undisturbed)
    assert not torch.equal(undisturbed, weights["skip1.weight"])


def test_more_features_have_more_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as characters can tell apart: two thirds of the sample, and no more than there are features."""
    monkeypatch.setattr(whitened_projections, "DIRECTIONS", 8)
    model = Projections(mostly_alike(40, 90), mostly_alike(40, 12))
    for characters, of_block1, of_block2 in ((10, 8, 8), (35, 24, 12)):
        whitened = WhitenedProjections(model, torch.arange(characters), torch.empty(0))  # type: ignore[arg-type]
        found = [group["params"][0].shape for group in whitened.groups()]
        assert found == [(6, of_block2), (6, of_block1), (6, of_block2)]
