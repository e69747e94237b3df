"""What tools put around layers is seen everywhere: hooks, offloaded weights, adapters, also inside HanGlyph."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import accelerate
import pytest
import torch
from torch import Tensor, nn

from glyphcrm.modeling import GlyphCRMForPreTraining

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 30, 7, 3, 0]])
CPU = torch.device("cpu")


def logits(model: nn.Module, grad: bool) -> Tensor:
    with torch.set_grad_enabled(grad):
        found: Tensor = model(input_ids=IDS).prediction_logits
    return found.detach()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("where", ["cpu", "cpu with buffers", "disk"])
def test_weights_that_are_elsewhere_come_when_they_are_needed(
    where: str, grad: bool, model: GlyphCRMForPreTraining, tmp_path: Path
) -> None:
    expected = logits(model, grad)
    if where == "disk":
        accelerate.disk_offload(model, str(tmp_path), execution_device=CPU)
    else:
        accelerate.cpu_offload(model, execution_device=CPU, offload_buffers=where != "cpu")
    assert model.glyphcrm.hanglyph.block1[0].weight.is_meta
    torch.testing.assert_close(logits(model, grad), expected, rtol=1e-5, atol=1e-5)


def test_every_layer_with_weights_is_called(model: GlyphCRMForPreTraining) -> None:
    """With a hook on each of them; and a hook that changes what a convolution says changes the logits each time."""
    expected = logits(model, False)
    called = set()
    for name, layer in model.named_modules():
        if any(True for _ in layer.parameters(recurse=False)):
            layer.register_forward_hook(lambda *_, name=name: called.add(name))
    having_weights = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    for _ in range(2):
        called.clear()
        torch.testing.assert_close(logits(model, False), expected, rtol=1e-5, atol=1e-5)
        assert called == having_weights
    model.glyphcrm.hanglyph.expand.register_forward_hook(lambda _, __, output: output + 1)
    assert not torch.allclose(logits(model, False), expected, atol=1e-3)


@pytest.mark.parametrize("part", ["stem", "block1.0", "block1.2", "expand", "block2.1"])
def test_a_layer_in_the_place_of_a_convolution(part: str, model: GlyphCRMForPreTraining) -> None:
    """As adapters do it; gradients arrive at it."""

    class Adapted(nn.Module):
        def __init__(self, inner: nn.Conv2d) -> None:
            super().__init__()
            self.inner, self.extra = inner, copy.deepcopy(inner)
            self.weight = inner.weight
            nn.init.zeros_(self.extra.weight)
            nn.init.zeros_(self.extra.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.extra(x)

    expected = logits(model, False)
    hanglyph = model.glyphcrm.hanglyph
    adapted = Adapted(hanglyph.get_submodule(part))
    hanglyph.set_submodule(part, adapted)
    torch.testing.assert_close(logits(model, False), expected, rtol=1e-5, atol=1e-5)
    model(input_ids=IDS).prediction_logits.square().mean().backward()
    assert adapted.extra.weight.grad.abs().sum() > 0
    with torch.no_grad():
        adapted.extra.bias.fill_(0.5)
    assert not torch.allclose(logits(model, False), expected, atol=1e-3)


@pytest.mark.parametrize("asked", [False, True])
def test_lora(asked: bool, model: GlyphCRMForPreTraining, tmp_path: Path) -> None:
    """peft on the targets that the documentation names, and on convolutions: training, saving, merging.

    Whoever had asked the model before adapters came, or did so while they were there, gets no vector of then.
    """
    peft = pytest.importorskip("peft")
    plain = copy.deepcopy(model)
    expected = logits(model, False)
    settings = peft.LoraConfig(r=2, target_modules=["query", "value", "block1.1", "vector"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings).eval()
    changed = logits(adapted, False)
    assert not torch.allclose(changed, expected, atol=1e-4)
    adapted(input_ids=IDS).prediction_logits.square().mean().backward()
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained and all(weight.grad is not None for weight in trained.values())
    assert {name.split("lora")[0].split(".")[-2] for name in trained} == {"query", "value", "1", "vector"}
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(plain, False), expected)
    again = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    if asked:
        assert torch.equal(logits(again, False), changed)
    torch.testing.assert_close(logits(again.merge_and_unload(), False), changed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_merged_adapter_leaves_no_vectors_of_before(frozen: bool, model: GlyphCRMForPreTraining) -> None:
    """Made in place, so that nothing is loaded: peft freezes weights, writes through `.data`, puts layers back.

    Where weights were frozen before, the vectors go when the adapter is asked.
    """
    peft = pytest.importorskip("peft")
    model.requires_grad_(not frozen)
    before = logits(model, False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["vector"], init_lora_weights=False)).eval()
    expected = logits(copy.deepcopy(adapted), False)
    if frozen:
        assert torch.equal(logits(adapted, False), expected)
    merged = logits(adapted.merge_and_unload(), False)
    assert not torch.allclose(merged, before, atol=1e-4)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_replicas_of_data_parallel(model: GlyphCRMForPreTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers' `Trainer` makes them on several GPUs without torchrun: they have no parameters of their own.

    PyTorch's own replication, with two copies on the CPU in the place of those on GPUs.
    """
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(replicate, "_get_device_index", lambda device, *_: device)
    monkeypatch.setattr(
        replicate,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [[t.detach() if detach else t.view_as(t) for t in tensors]] * 2,
    )

    def replica(grad: bool) -> nn.Module:
        made: nn.Module = replicate.replicate(model, [0, 1], detach=not grad)[1]
        assert not list(made.parameters())
        return made

    expected = logits(model, False)
    assert torch.equal(logits(replica(False), False), expected)
    replica(True)(input_ids=IDS).prediction_logits.square().mean().backward()
    assert model.glyphcrm.hanglyph.stem.weight.grad.abs().sum() > 0
    model.load_state_dict({name: 1.05 * weight for name, weight in model.named_parameters()}, strict=False)
    changed = logits(replica(False), False)
    assert not torch.allclose(changed, expected, atol=1e-4)
    assert torch.equal(changed, logits(copy.deepcopy(model), False))
