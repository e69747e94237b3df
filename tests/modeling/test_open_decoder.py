"""Characters that were never predicted get decoder rows from their pictures."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import Trainer, TrainingArguments, pipeline

from glyphcrm.checkpoint import load_checkpoint, save_checkpoint
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForMaskedLM, GlyphCRMForPreTraining
from glyphcrm.modeling.open_decoder import PENALTY, fit_ridge
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.classic import READ_ONLY, TEXT, VOCABULARY_SIZE

SENTENCE = f"天地[MASK]{READ_ONLY}黄"
Array = NDArray[np.float64]


def ridge(features: Array, targets: Array, penalty: float | Array, wanted: Array) -> Array:
    """The same regression another way: least squares with a row for each penalty, and none on the constant."""
    mean, spread = features.mean(0), features.std(0)
    spread[spread < 1e-12] = np.inf
    design = np.hstack([(features - mean) / spread, np.ones((len(features), 1))]) / np.sqrt(len(features))
    penalties = np.eye(features.shape[1], features.shape[1] + 1) * np.sqrt(np.reshape(penalty, (-1, 1)))
    answers = np.vstack([targets / np.sqrt(len(features)), np.zeros((features.shape[1], targets.shape[1]))])
    solution = np.linalg.lstsq(np.vstack([design, penalties]), answers, rcond=None)[0]
    return np.hstack([(wanted - mean) / spread, np.ones((len(wanted), 1))]) @ solution


@given(
    n=st.integers(1, 12), f=st.integers(1, 8), t=st.integers(1, 3), seed=st.integers(0, 99), penalty=st.floats(0.01, 9)
)
def test_the_regression_is_least_squares_with_a_penalty(n: int, f: int, t: int, seed: int, penalty: float) -> None:
    rng = np.random.default_rng(seed)
    features, targets, wanted = rng.normal(size=(n, f)), rng.normal(size=(n, t)), rng.normal(size=(4, f))
    features[:, 0] = 1.5  # says nothing
    found = fit_ridge(torch.from_numpy(features), torch.from_numpy(targets), penalty)(torch.from_numpy(wanted))
    np.testing.assert_allclose(found, ridge(features, targets, penalty, wanted), rtol=1e-7, atol=1e-9)


def test_rows_come_from_the_pictures_and_the_others_stay(
    model: GlyphCRMForPreTraining, atlas: GlyphAtlas, tokenizer: GlyphCRMTokenizer
) -> None:
    torch.nn.init.normal_(model.mlm.decoder.bias)
    batch = tokenizer(SENTENCE, return_tensors="pt")
    old_weight, old_bias = (tensor.detach().clone() for tensor in (model.mlm.decoder.weight, model.mlm.decoder.bias))
    with torch.no_grad():
        before = model(**batch).prediction_logits
    chosen = READ_ONLY[1] + READ_ONLY[3]
    assert model.extend_decoder(READ_ONLY[3] + " " + READ_ONLY[1]) == chosen
    with torch.no_grad():
        after = model(**batch).prediction_logits
    assert torch.equal(after[..., :VOCABULARY_SIZE], before)

    # Exactly those: what lies between them and was not asked for has no probability.
    rows = [atlas.rows[char] for char in chosen]
    assert model.config.vocab_size == after.shape[-1] == max(rows) + 1
    expected = [row < VOCABULARY_SIZE or row in rows for row in range(len(atlas))]
    assert model.predicts(torch.arange(len(atlas))).tolist() == expected
    assert not model.predicts(torch.tensor([-100, len(atlas)])).any()
    assert (after.softmax(-1)[..., [row for row in range(max(rows)) if not expected[row]]] == 0).all()

    learned = slice(len(SPECIAL_TOKENS), VOCABULARY_SIZE)
    base = model.glyphcrm
    everything = base.hanglyph(torch.arange(len(atlas)), base.glyph_table.bitmaps)
    features = torch.cat(everything, 1).detach().double().numpy()
    targets = torch.cat([old_weight, old_bias[:, None]], 1).double().numpy()[learned]
    fitted = ridge(features[learned], targets, PENALTY, features[rows])
    decoder = model.mlm.decoder
    made = torch.cat([decoder.weight, decoder.bias[:, None]], 1).detach()[rows]
    np.testing.assert_allclose(made, fitted, rtol=1e-4, atol=1e-5)

    # The rest, into the gaps; and a picture that two characters share gives both the same row.
    assert set(model.extend_decoder()) == set(READ_ONLY) - set(chosen)
    assert torch.equal(decoder.weight[rows], made[:, :-1]) and torch.equal(decoder.weight[:VOCABULARY_SIZE], old_weight)
    assert model.predicts(torch.arange(len(atlas))).all()


def test_rows_come_from_the_frequencies_too(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> None:
    learned, wanted = slice(len(SPECIAL_TOKENS), VOCABULARY_SIZE), [atlas.rows[char] for char in READ_ONLY]
    counts = {char: 2**i for i, char in enumerate(atlas.tokens[learned])} | {READ_ONLY[0]: 9**9, READ_ONLY[1]: 5}
    base = model.glyphcrm
    everything = base.hanglyph(torch.arange(len(atlas)), base.glyph_table.bitmaps)
    pictures = torch.cat(everything, 1).detach().double().numpy()
    logs = np.log1p([counts.get(char, 0) for char in atlas.tokens])[:, None]
    bends = np.maximum(logs - np.quantile(logs[learned], [1 / 3, 2 / 3]), 0)
    features = np.hstack([pictures, logs, bends])
    penalties = np.array([PENALTY] * pictures.shape[1] + [1e-6] * 3)
    # Biases are the logarithms themselves, which a penalty would keep the new ones from.
    model.mlm.decoder.bias.data[learned] = torch.from_numpy(logs[learned, 0]).float()
    decoder = torch.cat([model.mlm.decoder.weight, model.mlm.decoder.bias[:, None]], 1).detach()
    fitted = ridge(features[learned], decoder[learned].double().numpy(), penalties, features[wanted])
    assert model.extend_decoder(counts=counts) == READ_ONLY
    made = torch.cat([model.mlm.decoder.weight, model.mlm.decoder.bias[:, None]], 1).detach()[wanted]
    np.testing.assert_allclose(made, fitted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made[:, -1], logs[wanted, 0], atol=1e-3)


def test_what_cannot_be_predicted_is_one_line(model: GlyphCRMForPreTraining, atlas: GlyphAtlas) -> None:
    bitmaps = atlas.bitmaps.copy()
    bitmaps[atlas.rows[READ_ONLY[0]]] = 0
    model.set_atlas(GlyphAtlas(atlas.tokens, bitmaps, atlas.fonts, atlas.sources))
    for characters, complaint in (
        (READ_ONLY[0], rf"{READ_ONLY[0]} \(U\+9F98\) has no ink"),
        (READ_ONLY[1] + TEXT[3], rf"{TEXT[3]} \(U\+9EC4\) is predicted already"),
        ("🀀", "no picture of 🀀.*atlas add"),
        (" ", "no character to add"),
    ):
        with pytest.raises(UserError, match=complaint):
            model.extend_decoder(characters)
        assert model.config.vocab_size == VOCABULARY_SIZE == model.mlm.decoder.out_features
    for counts in ({READ_ONLY[1]: 5}, {TEXT[0]: 5, READ_ONLY[1]: -1}):
        with pytest.raises(UserError, match="counts must be 0 or more, and above 0 for a character"):
            model.extend_decoder(counts=counts)
        assert model.config.vocab_size == VOCABULARY_SIZE == model.mlm.decoder.out_features
    assert READ_ONLY[0] not in model.extend_decoder()
    with pytest.raises(UserError, match="no character to add"):
        model.extend_decoder()


def test_an_extended_model_is_saved_asked_and_trained(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path
) -> None:
    new, gap = READ_ONLY[3], READ_ONLY[1]
    model.extend_decoder(READ_ONLY[0] + new)
    save_checkpoint(model, tokenizer, tmp_path / "model")
    fill = pipeline("fill-mask", str(tmp_path / "model"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = fill("天[MASK]玄", targets=[new, "地"])
    assert {answer["token_str"] for answer in answers} == {new, "地"}
    with pytest.warns(UserWarning, match=f"{gap}; model.extend_decoder"):
        assert fill("天[MASK]玄", targets=[gap])[0]["token_str"] == "[UNK]"

    # Labels: the new one counts as itself, what lies between as [UNK].
    loaded, _ = load_checkpoint(tmp_path / "model", GlyphCRMForMaskedLM, heads=True)
    ids = tokenizer(f"天[MASK]{gap}", return_tensors="pt")["input_ids"]
    rows = tokenizer.convert_tokens_to_ids([new, gap])
    labels = torch.tensor([[-100, -100, *rows, -100]])
    found = loaded.eval()(ids, labels=labels)
    expected = F.cross_entropy(found.logits[0, 2:4], torch.tensor([rows[0], tokenizer.unk_token_id]))
    torch.testing.assert_close(found.loss, expected)

    data = [{"input_ids": ids[0], "labels": labels[0]}] * 4
    settings = TrainingArguments(str(tmp_path / "out"), max_steps=4, learning_rate=1e-2, weight_decay=0.1, report_to=[])
    Trainer(loaded, settings, train_dataset=data).train()
    loaded.eval()
    assert loaded(ids, labels=labels).loss < found.loss - 0.5
    assert not loaded.predicts(torch.tensor(rows[1])) and loaded.mlm.decoder.weight.isfinite().all()


def test_an_extended_model_is_loaded_without_the_package_being_imported(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path
) -> None:
    model.extend_decoder(READ_ONLY)
    save_checkpoint(model, tokenizer, tmp_path / "model")
    program = (
        "from transformers import pipeline\n"
        f"fill = pipeline('fill-mask', {str(tmp_path / 'model')!r}, trust_remote_code=True)\n"
        f"print(fill('天[MASK]', targets={list(READ_ONLY)!r})[0]['token'])\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= VOCABULARY_SIZE
