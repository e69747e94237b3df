"""Heads: the same for GlyphCRM and BERT, fresh, and loadable again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.conversion.half import convert_half
from glyphcrm.errors import UserError
from glyphcrm.finetuning.models import load_finetuned, load_model
from glyphcrm.finetuning.prediction import predict
from glyphcrm.modeling import GlyphCRMModel
from glyphcrm.tasks import Kind, TaggedExample, TextExample

LABELS = ("一", "二", "三")
MODELS = ("glyphcrm", "bert", "twin")


def load(directory: Path, kind: Kind = Kind.SENTENCE, seed: int = 0, dropout: float | None = None):
    return load_model(directory, kind, LABELS, seed=seed, dropout=dropout, attention="sdpa")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [Kind.SENTENCE, Kind.TAGGING])
def test_logits_are_one_linear_layer_on_the_encoder(name: str, kind: Kind, directories: dict[str, Path]) -> None:
    model, tokenizer = load(directories[name], kind)
    encoder = (GlyphCRMModel if name == "glyphcrm" else BertModel).from_pretrained(directories[name]).eval()
    inputs = tokenizer(["天地玄", "黄"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state
        logits = model.eval()(**inputs).logits
    weights = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("classifier")}
    (weight,) = (tensor for tensor in weights.values() if tensor.ndim == 2)
    expected = states @ weight.T
    assert len(weights) == 2  # a weight and a bias, no pooler
    assert not any("pooler" in key for key in model.state_dict())
    assert torch.allclose(logits, expected if kind is Kind.TAGGING else expected[:, 0], atol=1e-6)
    assert model.config.id2label == dict(enumerate(LABELS))


def test_all_models_start_from_the_same_head_and_seeds_differ(directories: dict[str, Path]) -> None:
    def head(name: str, kind: Kind, seed: int) -> torch.Tensor:
        model, _ = load(directories[name], kind, seed)
        (weight,) = (p for key, p in model.named_parameters() if key.startswith("classifier") and p.ndim == 2)
        return weight.detach()

    first = head("glyphcrm", Kind.SENTENCE, 0)
    assert all(torch.equal(first, head(name, kind, 0)) for name in MODELS for kind in (Kind.SENTENCE, Kind.TAGGING))
    assert not torch.equal(first, head("bert", Kind.SENTENCE, 1))
    assert 0.01 < float(first.std()) < 0.03


@pytest.mark.parametrize("name", MODELS)
def test_dropout_and_float16_are_not_left_as_they_were_saved(
    name: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    convert_half(directories[name], tmp_path / "half")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    model, _ = load(tmp_path / "half", dropout=0.3)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.3} and model.config.attention_probs_dropout_prob == 0.3


@pytest.mark.parametrize("name", MODELS)
def test_a_fine_tuned_model_is_itself_again_and_can_be_fine_tuned_for_another_task(
    name: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    for kind in (Kind.PAIR, Kind.TAGGING):
        model, tokenizer = load(directories[name], kind, seed=5)
        save_checkpoint(model, tokenizer, tmp_path / kind)
        again, reader = load_finetuned(tmp_path / kind)
        saved = model.state_dict()
        assert all(torch.equal(tensor.cpu(), saved[key]) for key, tensor in again.state_dict().items())
        assert type(reader) is type(tokenizer) and again.config.id2label == dict(enumerate(LABELS))
        other, _ = load_model(tmp_path / kind, Kind.SENTENCE, ("a", "b"), seed=0, dropout=None, attention="eager")
        assert other.config.num_labels == 2


def test_predictions_do_not_depend_on_the_batch(directories: dict[str, Path]) -> None:
    texts = [TextExample("天地玄黄宇宙洪荒"[:n], "一") for n in (1, 8, 3, 5, 2, 7)]
    tagged = [TaggedExample(tuple(text.text * 12), ("一",) * 12 * len(text.text)) for text in texts]
    for name in MODELS:
        for kind, examples in ((Kind.SENTENCE, texts), (Kind.TAGGING, tagged)):
            model, tokenizer = load(directories[name], kind)
            together = predict(model, tokenizer, examples, kind, LABELS, 32, batch_size=6)
            alone = [predict(model, tokenizer, [example], kind, LABELS, 32)[0] for example in examples]
            assert together == alone
            assert not model.training


def test_bad_directories_are_one_line(directories: dict[str, Path], tmp_path: Path) -> None:
    def refuse(directory: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            load(directory)
        assert "\n" not in str(error.value)

    refuse(tmp_path, "no config.json")
    gpt = tmp_path / "gpt"
    gpt.mkdir()
    (gpt / "config.json").write_text('{"model_type": "gpt2"}')
    refuse(gpt, "a gpt2 model")
    for name in MODELS:
        cut = shutil.copytree(directories[name], tmp_path / f"cut-{name}")
        weights = (cut / "model.safetensors").read_bytes()
        (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        refuse(cut, "again")
    lacking = shutil.copytree(directories["twin"], tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    refuse(lacking, "lack .*layer.1.output.dense.weight")
    swapped = shutil.copytree(directories["twin"], tmp_path / "swapped")
    with open(swapped / "vocab.txt", "a", encoding="utf-8") as file:
        file.write("䨻\n")
    refuse(swapped, "the tokenizer has .* tokens")
    with pytest.raises(UserError, match="not a fine-tuned model"):
        load_finetuned(directories["bert"])
