"""Parts of GlyphCRM in other models: the fused add-norm in transformers' BERTs, HanGlyph as an embedding."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining, HanGlyphEmbedding, patch_bert

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 30, 7, 3, 0]])


def bert(name: str = "Bert") -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **({"embedding_size": 16} if name == "Electra" else {}))
    model: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.normal_(norm.weight, 1.0, 0.2)
        nn.init.normal_(norm.bias, 0.0, 0.2)
    return model


def states(model: nn.Module) -> Tensor:
    found: Tensor = model(IDS).last_hidden_state
    return found


@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra", "Ernie", "XLMRoberta", "Camembert"])
def test_a_patched_bert_computes_the_same(name: str) -> None:
    plain = bert(name)
    patched = copy.deepcopy(plain)
    patch = patch_bert(patched)
    assert len(patch.layers) == 2 * SIZES["num_hidden_layers"]
    assert list(patched.state_dict()) == list(plain.state_dict())
    for model in (plain, patched):
        states(model).square().mean().backward()
    torch.testing.assert_close(states(patched), states(plain), rtol=1e-5, atol=1e-5)
    for (key, ours), theirs in zip(patched.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=key)
    patch.remove()
    assert torch.equal(states(patched), states(plain))
    patch_bert(patched)  # nothing is left of the first time


def test_the_fused_operation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where a hook wants to see the normalisation."""
    from glyphcrm.modeling import drop_in

    calls: list[dict[str, float]] = []
    fused = drop_in.add_norm
    monkeypatch.setattr(drop_in, "add_norm", lambda *inputs, **more: calls.append(more) or fused(*inputs, **more))
    model = bert()
    patch_bert(model)
    expected = states(model)
    assert [call["eps"] for call in calls] == [1e-12] * 4
    seen = []
    model.encoder.layer[0].output.LayerNorm.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(states(model), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 7 and seen == [1]


@pytest.mark.parametrize("name", ["BertModel", "BertLayer", "BertForMaskedLM", "RobertaModel"])
def test_a_patched_class_is_that_of_all_its_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those made before and after, by `from_pretrained`, and of other heads; of no other model; until undone."""
    from glyphcrm.modeling import drop_in

    calls: list[int] = []
    fused = drop_in.add_norm
    monkeypatch.setattr(
        drop_in, "add_norm", lambda *inputs, **more: calls.append(more["eps"]) or fused(*inputs, **more)
    )
    kind = name.partition("Model")[0] if name.endswith("Model") else "Bert"
    before, other = bert(kind), bert("Electra")
    expected, unlike = states(before), states(other)
    before.save_pretrained(tmp_path)
    module = sys.modules[type(before).__module__]
    patched_class = getattr(module, name)
    patch = patch_bert(patched_class)
    try:
        assert {layer.__name__ for layer in patch.layers} == {f"{kind}SelfOutput", f"{kind}Output"}
        with pytest.raises(UserError, match=f"{name} has no layer .* or they are patched"):
            patch_bert(patched_class)
        with pytest.raises(UserError, match="or they are patched"):
            patch_bert(before)
        later = getattr(transformers, f"{kind}ForTokenClassification").from_pretrained(tmp_path)
        for model in (before, later.base_model):
            calls.clear()
            torch.testing.assert_close(states(model), expected, rtol=1e-5, atol=1e-5)
            assert len(calls) == 2 * SIZES["num_hidden_layers"]
        calls.clear()
        bare = before.encoder.layer[0].output
        bare.LayerNorm = nn.LayerNorm(32, elementwise_affine=False)  # not as in BERT: its own operations
        states(before)
        assert torch.equal(states(other), unlike) and len(calls) == 3
    finally:
        patch.remove()
    assert torch.equal(states(bert(kind)), expected) and len(calls) == 3
    patch.remove()
    second = patch_bert(patched_class)
    patch.remove()  # the first one's, a second time: nothing of the other's
    assert states(bert(kind)).isfinite().all() and len(calls) == 7
    second.remove()


def test_a_class_without_such_layers_is_refused() -> None:
    for other in (GlyphCRMForPreTraining, nn.Linear, transformers.DistilBertModel):
        with pytest.raises(UserError, match=f"{other.__name__} has no layer that computes"):
            patch_bert(other)


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_dropout_falls_on_the_same_tensor(p: float) -> None:
    """On what the sub-layer says, not on the residual: the layer alone, over many draws."""
    layer = copy.deepcopy(bert().encoder.layer[0].output)
    layer.dropout.p = p
    nn.init.ones_(layer.LayerNorm.weight)
    nn.init.zeros_(layer.LayerNorm.bias)
    nn.init.zeros_(layer.dense.weight)
    nn.init.constant_(layer.dense.bias, 3.0)
    patch_bert(nn.ModuleList([layer]))
    residual = torch.zeros(400, 32)
    residual[:, ::2] = 100.0
    normalised = layer.train()(torch.zeros(400, 48), residual)
    assert ((normalised > 0.8) == (residual > 0)).all()  # no part of the residual is lost
    differing = (normalised[:, ::2].std(1) > 1e-3).float().mean()
    assert differing > 0.99 if p < 1 else differing == 0
    assert torch.equal(layer.eval()(torch.zeros(4, 48), residual[:4]).std(0), torch.zeros(32))


def test_a_patched_bert_in_torch_compile_checkpointing_and_pickle() -> None:
    model = bert()
    expected = states(model)
    patch_bert(model)
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(states(again), expected, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(states(compiled), expected, rtol=1e-5, atol=1e-5)
    model.train()
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0
    states(model).square().mean().backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    states(model).square().mean().backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


def test_what_is_no_bert_is_refused(model: GlyphCRMForPreTraining) -> None:
    for other in (model, nn.Linear(2, 2)):
        with pytest.raises(UserError, match="no layer that computes"):
            patch_bert(other)
    twice = bert()
    patch_bert(twice)
    with pytest.raises(UserError, match="or they are patched"):
        patch_bert(twice)


@pytest.fixture
def embedding(atlas: GlyphAtlas) -> HanGlyphEmbedding:
    torch.manual_seed(0)
    return HanGlyphEmbedding.from_atlas(atlas, 32, stem_channels=4, glyph_channels=8)


def test_an_embedding_encodes_each_distinct_id_once(embedding: HanGlyphEmbedding) -> None:
    rows = []
    embedding.hanglyph.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0].tolist()))
    vectors = embedding(IDS)
    assert vectors.shape == (2, 5, 32) and rows == [sorted(set(IDS.flatten().tolist()))]
    single = torch.stack([embedding(row) for row in IDS.flatten()])
    torch.testing.assert_close(vectors.flatten(0, 1), single, rtol=1e-5, atol=1e-6)
    assert embedding(IDS[:, :0]).shape == (2, 0, 32)
    assert (embedding.num_embeddings, embedding.embedding_dim) == (len(embedding.glyph_table.bitmaps), 32)
    for wrong in (-1, embedding.num_embeddings):
        with pytest.raises(IndexError, match=f"id {wrong} "):
            embedding(torch.tensor([3, wrong]))


def test_an_embedding_keeps_vectors_while_weights_stand_still(embedding: HanGlyphEmbedding) -> None:
    expected = embedding(IDS).detach()
    embedding.eval()
    made = []
    original = type(embedding.hanglyph).forward

    def counted(self: nn.Module, rows: Tensor, bitmaps: Tensor) -> object:
        made.append(len(rows))
        return original(self, rows, bitmaps)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(type(embedding.hanglyph), "forward", counted)
        for _ in range(3):
            torch.testing.assert_close(embedding(IDS), expected, rtol=1e-5, atol=1e-6)
        assert made == [len(set(IDS.flatten().tolist()))]
        embedding.hanglyph.vector.bias.add_(1.0)
        assert not torch.allclose(embedding(IDS), expected, atol=0.1) and len(made) == 2


def test_an_embedding_in_a_bert_learns_and_is_saved(embedding: HanGlyphEmbedding, atlas: GlyphAtlas) -> None:
    def with_pictures(embedding: HanGlyphEmbedding) -> BertForMaskedLM:
        torch.manual_seed(1)
        model = BertForMaskedLM(BertConfig(**{**SIZES, "vocab_size": len(atlas)}))
        model.set_input_embeddings(embedding)
        return model

    model = with_pictures(embedding)
    model(input_ids=IDS, labels=IDS).loss.backward()
    learning = [name for name, weight in embedding.named_parameters() if weight.requires_grad]
    assert len(learning) == 8 * 2 + 2
    assert all(embedding.get_parameter(name).grad.abs().sum() > 0 for name in learning)
    other = with_pictures(HanGlyphEmbedding.from_atlas(atlas, 32, stem_channels=4, glyph_channels=8)).eval()
    before = other(IDS).logits
    other.load_state_dict(model.state_dict())
    expected = model.eval()(IDS).logits
    assert torch.equal(other(IDS).logits, expected) and not torch.allclose(before, expected)


def test_an_embedding_out_of_a_checkpoint(model: GlyphCRMForPreTraining, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    embedding = HanGlyphEmbedding.from_pretrained(tmp_path).eval()
    rows = torch.arange(len(model.glyphcrm.glyph_table.bitmaps))
    expected = model.glyphcrm.hanglyph(rows, model.glyphcrm.glyph_table.bitmaps).vector
    torch.testing.assert_close(embedding(rows), expected, rtol=1e-5, atol=1e-6)


def test_a_model_of_transformers_that_holds_one_reads_ids(embedding: HanGlyphEmbedding) -> None:
    model = BertModel(BertConfig(**SIZES)).eval()
    model.embeddings.word_embeddings = embedding.eval()
    different = model(IDS).last_hidden_state
    swapped = IDS.clone()
    swapped[0, 1] = 12
    assert not torch.allclose(model(swapped).last_hidden_state[0], different[0], atol=1e-4)
    assert torch.equal(model(swapped).last_hidden_state[1], different[1])
