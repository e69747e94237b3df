"""Which linear layers of the encoder get their bias gradient from a kernel, and which are called as layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from glyphcrm_kernels._shared.launch import Launch, intercepted
from torch import Tensor, nn

from glyphcrm.configuration import preset
from glyphcrm.modeling import projection
from glyphcrm.modeling.encoder import EncoderBlock
from glyphcrm.modeling.projection import project
from tests.kernels.checks import DEVICE

LINEARS = 6  # of a block; a sum is two launches


@pytest.fixture
def sums() -> Iterator[list[str]]:
    """One entry for every column sum that is started."""
    started: list[str] = []

    def take(launch: Launch) -> None:
        started.extend(["sum"] * (launch.kernel.__name__ == "_column_sum_kernel"))
        launch.start()

    with intercepted(take):
        yield started


def trained(block: EncoderBlock, backend: str) -> list[Tensor]:
    """Return the output and the gradients of all that is trained."""
    block.config.kernel_backend = backend
    x = torch.linspace(-1, 1, 2 * 3 * block.config.hidden_size, device=DEVICE).view(2, 3, -1)
    y = block(x, None)
    return [y, *torch.autograd.grad(y.sin().sum(), [p for p in block.parameters() if p.requires_grad])]


def assert_close(found: list[Tensor], truth: list[Tensor]) -> None:
    for a, b in zip(found, truth, strict=True):  # the gradient of the keys' bias is 0 but for rounding
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def block() -> EncoderBlock:
    torch.manual_seed(0)
    return EncoderBlock(preset("nano", _attn_implementation="eager")).to(DEVICE).eval()


def test_every_bias_of_a_block_has_its_gradient_from_the_kernel(block: EncoderBlock, sums: list[str]) -> None:
    truth = trained(block, "reference")
    assert not sums
    found = trained(block, "triton")
    assert len(sums) == 2 * LINEARS
    assert_close(found, truth)
    with torch.no_grad():
        block(torch.zeros(1, 2, block.config.hidden_size, device=DEVICE), None)
    assert len(sums) == 2 * LINEARS


def test_auto_takes_it_on_a_gpu_for_many_tokens_alone(block: EncoderBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(projection, "biased_linear", lambda *_, backend: asked.append(backend))
    config, layer = block.config, block.output
    config.kernel_backend = "auto"
    x = torch.zeros(8, layer.in_features, device=DEVICE)
    for worthwhile in (8 * layer.out_features + 1, 8 * layer.out_features):
        monkeypatch.setattr(projection, "WORTHWHILE", worthwhile)
        project(layer, x, config)
    assert asked == (["auto"] if DEVICE == "cuda" else [])


def test_a_compiler_is_shown_no_threshold(block: EncoderBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would compile again for the sizes on its other side."""
    for name in ("kernel_backend", "WORTHWHILE"):
        monkeypatch.delattr(projection, name)
    x = torch.ones(3, block.output.in_features, device=DEVICE)
    compiled = torch.compile(project, backend="eager", fullgraph=True)
    assert torch.equal(compiled(block.output, x, block.config), block.output(x))


def test_a_layer_that_is_more_than_its_weights_is_called(block: EncoderBlock, sums: list[str]) -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    calls: list[str] = []
    block.intermediate.register_forward_hook(lambda *_: calls.append("hook"))
    block.attention.key.bias.requires_grad_(False)
    block.attention.value = Adapted(*block.attention.value.weight.shape).to(DEVICE)
    block.output.bias = None
    block.attention.query.weight = nn.Parameter(block.attention.query.weight.detach(), requires_grad=False)
    truth, found = trained(block, "reference"), trained(block, "triton")
    assert calls == ["hook"] * 2 and len(sums) == 2 * (LINEARS - 4)
    assert_close(found, truth)
