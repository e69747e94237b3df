"""The model against independent computations: BERT's own class, glyphs without sharing, float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from glyphcrm_kernels import add_norm, glyph_conv, glyph_stem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.conversion.release import block_name
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining, GlyphCRMForQuestionAnswering, GlyphCRMModel
from glyphcrm.modeling.hanglyph import position_map
from tests.versions import checkpoint_activations


def random_batch(rows: int, shape: tuple[int, int] = (3, 17), seed: int = 0) -> dict[str, Tensor]:
    """Token ids with padding at the ends, segments, and labels on some tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, rows, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[1, -5:] = 0
    ids[mask == 0] = 0
    labels = torch.where((torch.rand(shape, generator=generator) < 0.3) & (mask == 1), ids, -100)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, shape, generator=generator),
        "labels": labels,
        "next_sentence_label": torch.tensor([0, 1, 1])[: shape[0]],
    }


def test_parameter_counts_are_the_papers() -> None:
    with torch.device("meta"):
        model = GlyphCRMForPreTraining(GlyphCRMConfig())

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(model.glyphcrm.hanglyph) == 10_363_584
    assert count(model.glyphcrm) == 95_814_336
    assert count(model) == 111_311_222


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_without_skips_the_encoder_is_bert(model: GlyphCRMForPreTraining, attention: str) -> None:
    ours = model.glyphcrm
    ours.set_attn_implementation(attention)
    config = ours.config
    shared = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "layer_norm_eps",
    )
    bert = BertModel(
        BertConfig(
            vocab_size=10,
            max_position_embeddings=config.max_position_embeddings,
            attn_implementation=attention,
            **{name: getattr(config, name) for name in shared},
        ),
        add_pooling_layer=False,
    ).eval()
    weights = {f"glyphcrm.{name}": p for name, p in ours.named_parameters()}
    theirs = {
        "embeddings.position_embeddings.weight": weights["glyphcrm.position_embeddings.weight"],
        "embeddings.token_type_embeddings.weight": weights["glyphcrm.token_type_embeddings.weight"],
        "embeddings.LayerNorm.weight": weights["glyphcrm.embedding_norm.weight"],
        "embeddings.LayerNorm.bias": weights["glyphcrm.embedding_norm.bias"],
    }
    theirs |= {name: weights[mine] for name, _ in bert.named_parameters() if (mine := block_name(name))}
    # Weights away from their initial ones and zeros, so that a swapped or forgotten one shows.
    torch.manual_seed(1)
    theirs = {name: torch.randn_like(p) * 0.1 + (p.dim() == 1) for name, p in theirs.items()}
    assert bert.load_state_dict(theirs, strict=False).missing_keys == ["embeddings.word_embeddings.weight"]
    for name, p in theirs.items():
        if mine := block_name(name):
            weights[mine].data.copy_(p)
    for name in ("position_embeddings", "token_type_embeddings"):
        weights[f"glyphcrm.{name}.weight"].data.copy_(theirs[f"embeddings.{name}.weight"])
    for leaf in ("weight", "bias"):
        weights[f"glyphcrm.embedding_norm.{leaf}"].data.copy_(theirs[f"embeddings.LayerNorm.{leaf}"])

    batch = random_batch(20)
    inputs = {
        "inputs_embeds": torch.randn(3, 17, config.hidden_size),
        "attention_mask": batch["attention_mask"],
        "token_type_ids": batch["token_type_ids"],
    }
    visible = batch["attention_mask"].bool()
    difference = ours(**inputs).last_hidden_state - bert(**inputs).last_hidden_state
    assert difference[visible].abs().max() < 1e-5


def test_sharing_distinct_characters_changes_nothing(model: GlyphCRMForPreTraining) -> None:
    """Outputs and gradients are those of running HanGlyph on every token by itself."""
    model.train()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    batch = random_batch(len(model.glyphcrm.glyph_table.bitmaps))
    ids = batch.pop("input_ids")

    def run(**characters: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        model.zero_grad()
        outputs = model(**characters, **batch)
        outputs.loss.backward()
        return (
            outputs.loss,
            outputs.prediction_logits,
            {n: p.grad.clone() for n, p in model.named_parameters()},
        )

    shared = run(input_ids=ids)
    alone = run(glyph_ids=ids.flatten(), glyph_index=torch.arange(ids.numel()).view_as(ids))
    torch.testing.assert_close(shared[:2], alone[:2], rtol=0, atol=1e-5)
    for name, gradient in shared[2].items():
        assert (gradient - alone[2][name]).norm() <= 1e-5 * (1 + alone[2][name].norm()), name


def test_prepared_glyphs_stand_beside_the_ids(model: GlyphCRMForPreTraining) -> None:
    """They are used, and the ids are not looked at."""
    batch = random_batch(len(model.glyphcrm.glyph_table.bitmaps))
    ids = batch["input_ids"]
    glyph_ids, glyph_index = ids.unique(return_inverse=True)
    prepared = {"glyph_ids": glyph_ids, "glyph_index": glyph_index}
    vectors = {
        "glyph_vectors": model.glyphcrm.hanglyph(glyph_ids, model.glyphcrm.glyph_table.bitmaps),
        "glyph_index": glyph_index,
    }
    expected = model(**batch).prediction_logits
    batch["input_ids"] = torch.full_like(ids, 9999)
    for forms in (prepared, vectors):
        assert torch.equal(model(**batch, **forms).prediction_logits, expected)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch, **prepared).prediction_logits, expected)


def test_every_token_draws_its_own_dropout(model: GlyphCRMForPreTraining) -> None:
    """Sharing must not give all occurrences of a character the same dropout mask on the glyph vector."""
    base = model.glyphcrm
    seen: list[Tensor] = []
    base.embedding_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    base.train()
    base.position_embeddings.weight.data.zero_()
    base(torch.full((1, 8), 9))
    zeros = seen[0][0] - base.token_type_embeddings.weight[0] == 0
    assert not torch.equal(zeros[0], zeros[1])


def test_labels_pick_the_positions_whose_logits_are_computed(model: GlyphCRMForPreTraining) -> None:
    batch = random_batch(len(model.glyphcrm.glyph_table.bitmaps), seed=3)
    full = model(**batch)
    assert full.prediction_logits.shape == (3, 17, model.config.vocab_size)
    index = (batch["labels"].flatten() != -100).nonzero().squeeze(1)
    some = model(**batch, prediction_index=index)
    torch.testing.assert_close(some.prediction_logits, full.prediction_logits.flatten(0, 1)[index])
    torch.testing.assert_close(some.loss, full.loss)
    # The mean over labels, characters outside the vocabulary counting as [UNK].
    labels = batch["labels"].flatten()[index]
    assert (labels >= model.config.vocab_size).any()
    labels[labels >= model.config.vocab_size] = model.config.unk_token_id
    log_p = some.prediction_logits.double().log_softmax(-1)
    expected = -log_p[torch.arange(len(index)), labels].mean()
    torch.testing.assert_close(full.mlm_loss.double(), expected, rtol=1e-5, atol=1e-6)
    no_labels = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert model.train()(**no_labels).mlm_loss == 0


def test_gradient_checkpointing_changes_no_gradient(model: GlyphCRMForPreTraining) -> None:
    batch = random_batch(len(model.glyphcrm.glyph_table.bitmaps))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_activations(model)
        model.train().zero_grad()
        torch.manual_seed(7)
        model(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_characters_differ_at_the_start(atlas: GlyphAtlas) -> None:
    """The vectors of a new model are centred, of the wanted scale, and in as many directions as there can be."""
    torch.manual_seed(0)
    config = preset("tiny", vocab_size=50)
    base = GlyphCRMForPreTraining.from_atlas(config, atlas).glyphcrm
    for vector in base.hanglyph(torch.arange(1, len(atlas)), base.glyph_table.bitmaps):
        before_tanh = torch.atanh(vector.detach().double().clamp(-1 + 1e-6, 1 - 1e-6))
        assert before_tanh.mean(0).abs().max() < 0.05 * config.glyph_initializer_spread
        scale = before_tanh.std() / config.glyph_initializer_spread
        assert scale == pytest.approx(1, abs=0.1)
        variances = torch.linalg.svdvals(before_tanh - before_tanh.mean(0)) ** 2
        effective_rank = variances.sum() ** 2 / (variances**2).sum()
        assert effective_rank > 0.8 * (len(atlas) - 2)


def test_more_features_are_whitened_over_more_characters(atlas: GlyphAtlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glyphcrm.modeling.model.WHITENING_SAMPLE", 12)
    for channels, last in ((1, 11), (2, 23)):  # of 9 features each
        config = preset("nano", vocab_size=len(atlas), glyph_channels=channels)
        assert GlyphCRMModel.from_atlas(config, atlas).frequent_rows().tolist() == list(range(1, last + 1))


def test_position_maps() -> None:
    x, y = position_map("paper")
    assert x.min() == pytest.approx(-0.2) and x.max() == pytest.approx(0.2)
    torch.testing.assert_close(x, -x.flip(1))
    torch.testing.assert_close(y, x.T.flip(0))
    x, y = position_map("release")
    assert x[5, 30] == pytest.approx((30 - 24) * 0.02) and y[5, 30] == pytest.approx(-(5 - 24) * 0.02)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.zeros(0, 4, dtype=torch.int64)}, "neither of them 0"),
        ({"input_ids": torch.ones(1, 65, dtype=torch.int64)}, "65 tokens is longer than the model's 64"),
        ({"input_ids": torch.tensor([[5, 9999]])}, "token id 9999"),
        ({"input_ids": torch.tensor([[-1, 5]])}, "token id -1"),
        (
            {"glyph_ids": torch.tensor([9999]), "glyph_index": torch.zeros(1, 4, dtype=torch.int64)},
            "token id 9999",
        ),
        ({"input_ids": torch.zeros(1, 4, dtype=torch.int64), "attention_mask": torch.zeros(1, 4)}, "padding"),
        (
            {"input_ids": torch.ones(2, 4, dtype=torch.int64), "attention_mask": torch.ones(2, 4, 4)},
            "has shape .2, 4, 4.",
        ),
        ({"input_ids": torch.zeros(1, 4, dtype=torch.int64)}, "nothing but padding"),
        ({"glyph_ids": torch.tensor([5])}, "go together"),
        ({"input_ids": torch.ones(1, 4, dtype=torch.int64), "inputs_embeds": torch.ones(1, 4, 32)}, "exactly one of"),
        ({}, "exactly one of"),
    ],
)
def test_bad_input_is_named(model: GlyphCRMForPreTraining, inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlyphCRMModel.forward(model.glyphcrm, **inputs)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("head", [GlyphCRMForPreTraining, GlyphCRMForQuestionAnswering])
def test_a_mask_that_is_added_to_scores(
    head: type[PreTrainedModel], padding: int, model: GlyphCRMForPreTraining, directory: Path
) -> None:
    """Wherever padding is, and where there is none, it says what the mask of tokens does."""
    reader = model if head is GlyphCRMForPreTraining else head.from_pretrained(directory).eval()
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 30, 7, 3, 5]])
    tokens = torch.ones(2, 5, dtype=torch.int64)
    tokens[1, 5 - padding :] = 0
    added = torch.zeros(2, 1, 1, 5).masked_fill(tokens[:, None, None] == 0, torch.finfo(torch.float32).min)
    found, expected = (reader(ids, attention_mask=mask)[0][tokens != 0] for mask in (added, tokens))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 9),
    d=st.sampled_from([1, 3, 96, 768]),
    rows=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_add_norm_is_the_formula(tokens: int, d: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, residual, skip = torch.randn(tokens, d), torch.randn(tokens, d), torch.randn(rows, d)
    weight, bias, index = torch.randn(d), torch.randn(d), torch.randint(0, rows, (tokens,))
    eps = 1e-6
    z = (x.double() + residual + skip[index]).numpy()
    mean, variance = z.mean(-1, keepdims=True), z.var(-1, keepdims=True)
    expected = (z - mean) / (variance + eps) ** 0.5 * weight.numpy() + bias.numpy()
    actual = add_norm(x, residual, weight, bias, skip=skip, index=index, eps=eps)
    if d > 1:
        assert abs(actual.numpy() - expected).max() < 2e-5 * (1 + abs(expected).max())
    with pytest.raises(ValueError, match="go together"):
        add_norm(x, residual, weight, bias, skip=skip)


def test_fused_convolutions_are_their_parts() -> None:
    torch.manual_seed(0)
    bits = torch.randint(0, 2, (4, 48, 48), dtype=torch.uint8)
    packed = (bits.view(4, 288, 8) << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    rows = torch.tensor([3, 0, 3])
    weight, bias, positions = (
        torch.randn(5, 3, 3, 3).double(),
        torch.randn(5).double(),
        position_map("paper").double(),
    )
    activation, pooled = glyph_stem(rows, packed, weight, bias, positions)
    channels = torch.stack([torch.cat([bits[r][None].double(), positions]) for r in rows.tolist()])
    expected = torch.conv2d(channels, weight, bias, padding=1).clamp_min(0)
    torch.testing.assert_close(activation, expected)
    torch.testing.assert_close(pooled, expected.view(3, 5, 24, 2, 24, 2).amax((3, 5)))

    kernel, shift = torch.randn(5, 5, 9, 9).double(), torch.randn(5).double()
    residual = torch.randn(3, 5, 40, 40).double()
    y = glyph_conv(expected, kernel, shift, residual=residual, relu=True, pool=True)
    patches = torch.nn.functional.unfold(expected, 9).view(3, -1, 40 * 40)
    by_hand = (kernel.flatten(1) @ patches + shift[:, None]).view(3, 5, 40, 40) + residual
    torch.testing.assert_close(y, by_hand.clamp_min(0).view(3, 5, 20, 2, 20, 2).amax((3, 5)))
