"""AddNorm as others would use it: inside transformers' own BERT."""

from __future__ import annotations

import pytest
import torch
from glyphcrm_kernels import AddNorm
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tests.kernels.checks import DEVICE


class FusedOutput(nn.Module):
    """What ends both halves of a BERT block, with one fused operation behind the dense layer."""

    def __init__(self, original: nn.Module, backend: str) -> None:
        super().__init__()
        self.dense, self.backend = original.dense, backend
        self.norm = AddNorm(original.LayerNorm.normalized_shape[0], original.dropout.p, original.LayerNorm.eps)
        self.norm.load_state_dict(original.LayerNorm.state_dict())

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.norm(self.dense(hidden_states), input_tensor, backend=self.backend)


def test_it_is_made_where_and_as_asked_for() -> None:
    norm = AddNorm(8, 0.1, device="meta", dtype=torch.bfloat16)
    assert norm.weight.is_meta and norm.bias.dtype == torch.bfloat16
    plain = nn.LayerNorm(8)
    assert AddNorm(8).state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_bert_with_fused_add_norms_is_bert(backend: str) -> None:
    """Same weights, same hidden states and gradients; in training, dropout is on."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    bert = BertModel(BertConfig(vocab_size=30, **sizes), add_pooling_layer=False).to(DEVICE).eval()
    ids = torch.randint(0, 30, (2, 9), device=DEVICE)
    cotangent = torch.randn(2, 9, 48, device=DEVICE)

    def run() -> tuple[Tensor, Tensor]:
        bert.zero_grad()
        hidden = bert(ids).last_hidden_state
        hidden.backward(cotangent)
        return hidden.detach(), bert.embeddings.word_embeddings.weight.grad.clone()

    expected = run()
    for layer in bert.encoder.layer:
        layer.attention.output = FusedOutput(layer.attention.output, backend).to(DEVICE)
        layer.output = FusedOutput(layer.output, backend).to(DEVICE)
    bert.eval()
    for actual, true in zip(run(), expected, strict=True):
        assert (actual - true).norm() / true.norm() < 1e-5
    assert "p=0.1" in repr(bert.encoder.layer[0].output.norm)
    bert.encoder.layer[1].output.train()
    assert not torch.equal(run()[0], run()[0])
