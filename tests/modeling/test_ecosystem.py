"""The models in transformers' own classes: Auto classes, pipelines, Trainer, save and load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from glyphcrm.checkpoint import check_tokenizer, load_atlas
from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import default_font
from glyphcrm.modeling import (
    GlyphCRMForMaskedLM,
    GlyphCRMForPreTraining,
    GlyphCRMForSequenceClassification,
    GlyphCRMForTokenClassification,
    GlyphCRMModel,
)
from glyphcrm.modeling.heads import HEADS, GlyphCRMHead
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import READ_ONLY, TEXT, VOCABULARY_SIZE

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "glyphcrm-tiny"


def test_every_auto_class_loads_the_same_encoder(model: GlyphCRMForPreTraining, directory: Path) -> None:
    assert type(AutoConfig.from_pretrained(directory)) is GlyphCRMConfig
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    expected = model.glyphcrm(ids).last_hidden_state
    for auto_class in ("AutoModel", *HEADS):
        loaded = getattr(transformers, auto_class).from_pretrained(directory).eval()
        assert torch.equal(loaded.glyph_model(ids).last_hidden_state, expected)
        assert torch.equal(loaded.glyph_model.glyph_table.sources, model.glyphcrm.glyph_table.sources)
    logits = AutoModelForMaskedLM.from_pretrained(directory).eval()(ids).logits
    assert torch.equal(logits, model(ids).prediction_logits)


def test_heads_have_losses_of_the_right_shape(model: GlyphCRMForPreTraining, directory: Path) -> None:
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 10, 3]])
    classifier = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=3)
    outputs = classifier(ids, labels=torch.tensor([0, 2]))
    assert outputs.logits.shape == (2, 3) and outputs.loss > 0
    outputs.loss.backward()
    tagger = AutoModelForTokenClassification.from_pretrained(directory, num_labels=7)
    outputs = tagger(ids, labels=torch.tensor([[-100, 1, 6, -100], [-100, 0, 0, -100]]))
    assert outputs.logits.shape == (2, 4, 7)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, 1:3].flatten(0, 1), torch.tensor([1, 6, 0, 0]))
    torch.testing.assert_close(outputs.loss, expected)


def test_a_loaded_encoder_has_the_pooler_that_was_trained(
    model: GlyphCRMForPreTraining, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """tanh(W h + b) of [CLS], as BERT's; none, and no warning, where a checkpoint has no such weights."""
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3], [0, 2, 9, 3]])}
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    encoder = AutoModel.from_pretrained(directory)
    outputs = encoder(**inputs, output_hidden_states=True)
    first = torch.stack([outputs.last_hidden_state[0, 0], outputs.last_hidden_state[1, 1]])  # left padding
    expected = torch.tanh(torch.nn.functional.linear(first, model.nsp.pooler.weight, model.nsp.pooler.bias))
    torch.testing.assert_close(outputs.pooler_output, expected)
    torch.testing.assert_close(model.nsp.classifier(outputs.pooler_output), model(**inputs).seq_relationship_logits)
    assert list(outputs) == ["last_hidden_state", "pooler_output", "hidden_states"]
    assert outputs[1] is outputs.pooler_output
    torch.testing.assert_close(encoder(**inputs, first_token_only=True).pooler_output, expected)
    places = torch.tensor([[0, 1, 2, 3, 1, 2, 3]])
    row = encoder(torch.tensor([[2, 7, 8, 3, 2, 9, 3]]), position_ids=places, cu_seq_lens_q=torch.tensor([0, 4, 7]))
    torch.testing.assert_close(row.pooler_output, expected)

    encoder.save_pretrained(tmp_path / "encoder")  # and back into a head
    again, report = GlyphCRMForPreTraining.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert torch.equal(again.nsp.pooler.weight, model.nsp.pooler.weight)
    assert not any(name.startswith(("glyphcrm.", "nsp.pooler")) for name in report["missing_keys"])

    GlyphCRMForMaskedLM.from_pretrained(directory).save_pretrained(tmp_path / "masked")
    caplog.clear()
    poolerless, report = AutoModel.from_pretrained(tmp_path / "masked", output_loading_info=True)
    assert poolerless(**inputs).pooler_output is None and not report["missing_keys"] and not caplog.records
    assert list(GlyphCRMModel.from_pretrained(directory, add_pooling_layer=False)(**inputs)) == ["last_hidden_state"]
    new, report = AutoModel.from_pretrained(tmp_path / "masked", add_pooling_layer=True, output_loading_info=True)
    assert new(**inputs).pooler_output.shape == (2, 32)
    assert report["missing_keys"] == {"nsp.pooler.weight", "nsp.pooler.bias"}  # of which transformers warns


def test_choices_are_rows_of_a_classifier(model: GlyphCRMForPreTraining, directory: Path) -> None:
    """As BERT's: logits of all choices of all questions in one batch, whose characters are each encoded once."""
    chooser = AutoModelForMultipleChoice.from_pretrained(directory).eval()
    ids = torch.tensor([[[2, 7, 8, 3], [2, 7, 9, 3], [2, 9, 3, 0]], [[2, 5, 3, 0], [2, 8, 8, 3], [2, 7, 5, 3]]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": (ids == 3).long()}
    classifier = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1).eval()
    classifier.classifier.load_state_dict(chooser.choice.state_dict())
    questions = [{name: value[i] for name, value in inputs.items()} for i in (0, 1)]
    expected = torch.stack([classifier(**question).logits[:, 0] for question in questions])
    labels = torch.tensor([2, 0])
    encoded = []
    chooser.glyphcrm.hanglyph.register_forward_pre_hook(lambda _, arguments: encoded.append(arguments[0].tolist()))
    outputs = chooser(**inputs, labels=labels)
    torch.testing.assert_close(outputs.logits, expected)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(expected, labels))
    assert encoded == [ids.unique().tolist()]
    states = classifier.glyphcrm(**{name: value.flatten(0, 1) for name, value in inputs.items()}).last_hidden_state
    recorded = chooser(**inputs, output_hidden_states=True, return_dict=False)
    torch.testing.assert_close(recorded[0], expected)
    torch.testing.assert_close(recorded[1][-1][0], states[0])
    inputs["glyph_ids"], inputs["glyph_index"] = inputs.pop("input_ids").unique(return_inverse=True)
    torch.testing.assert_close(chooser(**inputs).logits, expected)
    vectors = model.glyphcrm.hanglyph.all_vectors(inputs.pop("glyph_ids"), model.glyphcrm.glyph_table.bitmaps)
    torch.testing.assert_close(chooser(**inputs, glyph_vectors=vectors).logits, expected)
    embeds = torch.randn(*ids.shape, 32)
    alone = chooser(inputs_embeds=embeds[:, 1:2]).logits
    torch.testing.assert_close(chooser(inputs_embeds=embeds).logits[:, 1:2], alone)
    for wrong in ({"input_ids": ids[0]}, {"inputs_embeds": embeds[0]}, {}):
        with pytest.raises(ValueError, match="choices come as"):
            chooser(**wrong)


def test_fill_mask_pipeline_answers_with_characters(directory: Path) -> None:
    fill = pipeline("fill-mask", str(directory))
    answers = fill("天地[MASK]黄", top_k=3)
    assert len(answers) == 3
    for answer in answers:
        assert answer["sequence"] == f"天地{answer['token_str']}黄" or answer["token_str"].startswith("[")


@pytest.mark.parametrize(
    "head", [GlyphCRMForMaskedLM, GlyphCRMForSequenceClassification, GlyphCRMForTokenClassification]
)
def test_trainer_resumes_to_the_same_weights(
    head: type[GlyphCRMHead],
    model: GlyphCRMForPreTraining,
    tokenizer: GlyphCRMTokenizer,
    directory: Path,
    tmp_path: Path,
) -> None:
    """transformers' own Trainer with dropout and shuffling, on a `datasets.Dataset`, interrupted after a checkpoint."""

    def encode(texts: dict[str, list[str]]) -> dict[str, Any]:
        rows = tokenizer(texts["text"])
        labels = {
            GlyphCRMForMaskedLM: [[-100 if i % 3 else t for i, t in enumerate(row)] for row in rows["input_ids"]],
            GlyphCRMForSequenceClassification: [row[1] % 2 for row in rows["input_ids"]],
            GlyphCRMForTokenClassification: [[t % 2 for t in row] for row in rows["input_ids"]],
        }
        return {**rows, "labels": labels[head]}

    texts = datasets.Dataset.from_dict({"text": [TEXT[i : i + 9] for i in range(16)]})
    samples = texts.map(encode, batched=True, remove_columns="text").with_format("torch")

    def train(output: Path, **more: object) -> GlyphCRMHead:
        trained = head.from_pretrained(directory)
        trainer = Trainer(
            model=trained,
            args=TrainingArguments(
                output_dir=str(output),
                max_steps=6,
                per_device_train_batch_size=4,
                save_steps=3,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                dataloader_num_workers=0,
            ),
            train_dataset=samples,
            eval_dataset=samples,
            processing_class=tokenizer,
        )
        trainer.train(**more)
        assert trainer.evaluate()["eval_loss"] > 0 and len(trainer.predict(samples).predictions) == 16
        return trained

    straight = train(tmp_path / "a")
    resumed = train(tmp_path / "b", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    moved = False
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
        moved |= not torch.equal(a, model.state_dict().get(name, a))
    assert moved


def test_characters_can_be_added_to_a_trained_model(
    model: GlyphCRMForPreTraining, atlas: GlyphAtlas, directory: Path
) -> None:
    """New rows are read at once, and nothing that could be read before changes."""
    ids = torch.tensor([[2, 7, 8, 3]])
    before = model(ids).prediction_logits
    longer = atlas.extended(GlyphAtlas.build(["麤", "[PAD]"], [default_font()]))
    model.set_atlas(longer)
    assert torch.equal(model(ids).prediction_logits, before)
    new = model(torch.tensor([[2, longer.rows["麤"], 8, 3]])).prediction_logits
    assert not torch.equal(new, before)
    model.save_pretrained(directory)
    again = AutoModelForPreTraining.from_pretrained(directory).eval()
    assert torch.equal(again(torch.tensor([[2, longer.rows["麤"], 8, 3]])).prediction_logits, new)


def test_the_atlas_of_a_checkpoint_can_be_taken_out(atlas: GlyphAtlas, directory: Path) -> None:
    found = load_atlas(directory)
    assert found.tokens == atlas.tokens and found.fonts == atlas.fonts
    assert (found.bitmaps == atlas.bitmaps).all() and (found.sources == atlas.sources).all()


def test_damaged_or_mixed_checkpoints_are_refused(
    model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, directory: Path, tmp_path: Path
) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(directory, tmp_path / name)

    flipped = copy("flipped")
    tensors = load_file(flipped / "model.safetensors")
    tensors["glyphcrm.glyph_table.bitmaps"][7, 100] ^= 1
    save_file(tensors, flipped / "model.safetensors", metadata={"format": "pt"})
    for load in (AutoModelForPreTraining.from_pretrained, load_atlas):
        with pytest.raises(UserError, match="do not match"):
            load(flipped)

    truncated = copy("truncated")
    content = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated"):
        load_atlas(truncated)

    swapped = copy("swapped")
    lines = (swapped / "vocab.txt").read_text(encoding="utf-8").split("\n")
    lines[6], lines[7] = lines[7], lines[6]
    (swapped / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="do not match"):
        load_atlas(swapped)
    with pytest.raises(UserError, match="does not belong"):
        check_tokenizer(model, GlyphCRMTokenizer.from_pretrained(swapped), swapped)
    check_tokenizer(model, tokenizer, directory)


def test_configurations_that_cannot_be_are_refused() -> None:
    for wrong in ({"num_glyphs": 10}, {"num_attention_heads": 5}, {"position_map": "polar"}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            preset("base", **wrong)
    with pytest.raises(ValueError, match="no preset 'huge'"):
        preset("huge")


def test_importing_brings_no_modelling_code_but_registers() -> None:
    """`import glyphcrm` stays light, and the Auto classes work whatever is imported first."""
    for first in ("import glyphcrm, transformers", "import transformers.models.auto.tokenization_auto, glyphcrm"):
        program = (
            f"{first}, sys, json\n"
            "light = 'transformers.modeling_utils' not in sys.modules\n"
            "config = transformers.AutoConfig.for_model('glyphcrm', num_hidden_layers=1, vocab_size=9, num_glyphs=9)\n"
            "model = transformers.AutoModel.from_config(config)\n"
            "tokenizers = transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING\n"
            "print(json.dumps([light, type(model).__name__, type(config) in tokenizers]))"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert json.loads(result.stdout.splitlines()[-1]) == [True, "GlyphCRMModel", True]


def test_read_only_characters_are_read_apart(model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer) -> None:
    assert model.config.vocab_size == VOCABULARY_SIZE < model.config.num_glyphs
    states = [model.glyphcrm(torch.tensor([tokenizer.encode(char)])).last_hidden_state for char in READ_ONLY]
    assert not any(torch.allclose(states[0], other, atol=1e-4) for other in states[1:])


def run_without_import(program: str, directory: Path, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which nothing imports glyphcrm but transformers itself."""
    program = f"from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, pipeline\n{program}"
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", program, str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, input="")


@pytest.mark.parametrize("where", ["saved", "shipped"])
def test_a_saved_model_is_loaded_without_import(where: str, directory: Path, tmp_path: Path) -> None:
    """By `trust_remote_code=True`; without it transformers says what is missing, of the tokenizer, too."""
    program = (
        "import sys; where, out = sys.argv[1:]\n"
        "for auto_class in (AutoConfig, AutoModelForMaskedLM, AutoTokenizer):\n"
        "    try:\n        auto_class.from_pretrained(where)\n"
        "    except ValueError as error:\n        assert 'trust_remote_code=True' in str(error), error\n"
        "    else:\n        raise AssertionError(auto_class)\n"
        "assert 'glyphcrm' not in sys.modules\n"
        "tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=True)\n"
        "assert type(tokenizer).__module__ == 'glyphcrm.tokenization'\n"
        "tokenizer.save_pretrained(out + '-tokenizer')\n"
        "fill = pipeline('fill-mask', where, trust_remote_code=True)\n"
        "assert type(fill.model).__module__ == 'glyphcrm.modeling.heads'\n"
        "assert type(fill.tokenizer).__module__ == 'glyphcrm.tokenization'\n"
        "assert type(AutoTokenizer.from_pretrained(where)) is type(tokenizer)\n"
        "print(len(fill('天地[MASK]黄', top_k=3)))\n"
        "fill.model.save_pretrained(out + '-model')\n"
    )
    source = directory if where == "saved" else SHIPPED
    result = run_without_import(program, source, tmp_path / "cache", str(tmp_path / "again"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "3"
    model, tokenizer = (tmp_path / name for name in ("again-model", "again-tokenizer"))
    assert {path.name for path in model.iterdir()} == {"config.json", "load_glyphcrm.py", "model.safetensors"}
    names = {"load_glyphcrm.py", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {path.name for path in tokenizer.iterdir()} == names  # and no copies of our modules
    for again, name, classes in (
        (model, "config.json", {"AutoConfig": "load_glyphcrm.GlyphCRMConfig"}),
        (tokenizer, "tokenizer_config.json", {"AutoTokenizer": [None, "load_glyphcrm.GlyphCRMTokenizer"]}),
    ):
        assert json.loads((again / name).read_text(encoding="utf-8"))["auto_map"] == classes


def test_without_the_package_a_saved_model_says_what_is_missing(directory: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'glyphcrm':\n            raise ModuleNotFoundError(\"No module named 'glyphcrm'\")\n"
        "sys.meta_path.insert(0, Absent())\n"
        "AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
    )
    result = run_without_import(program, directory, tmp_path / "cache")
    assert result.returncode == 1 and "pip install glyphcrm" in result.stderr.splitlines()[-1]


def test_sentence_transformers_round_trip(directory: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    sentences = ["天地玄黄", "宇宙洪荒。日月盈昃", "寒来暑往"]
    whole = library.SentenceTransformer(str(directory), device="cpu")
    vectors = whole.encode(sentences, batch_size=2)
    tokenizer, encoder = GlyphCRMTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    for sentence, vector in zip(sentences, vectors, strict=True):
        with torch.no_grad():
            mean = encoder(**tokenizer(sentence, return_tensors="pt")).last_hidden_state.mean(1)[0]
        torch.testing.assert_close(torch.tensor(vector), mean, rtol=1e-4, atol=1e-5)
    whole.save(str(tmp_path / "saved"))
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert (again.encode(sentences, batch_size=2) == vectors).all()


def test_pipelines_say_what_the_model_says(directory: Path) -> None:
    """Four that need no masks, with the answers counted out by hand."""
    text = TEXT[3:12]
    batch = GlyphCRMTokenizer.from_pretrained(directory)(text, return_tensors="pt")
    with torch.no_grad():
        classifier = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=3).eval()
        shares = classifier(**batch).logits[0].softmax(-1)
        tagger = AutoModelForTokenClassification.from_pretrained(directory, num_labels=5).eval()
        tags = tagger(**batch).logits[0, 1:-1].argmax(-1)
        states = AutoModel.from_pretrained(directory).eval()(**batch).last_hidden_state
    tokenizer = GlyphCRMTokenizer.from_pretrained(directory)
    (labels,) = pipeline("text-classification", classifier, tokenizer=tokenizer, top_k=None)([text])
    assert {answer["label"]: answer["score"] for answer in labels} == pytest.approx(
        {f"LABEL_{i}": share for i, share in enumerate(shares.tolist())}, abs=1e-5
    )
    found = pipeline("token-classification", tagger, tokenizer=tokenizer, ignore_labels=[])(text)
    assert [(answer["word"], answer["entity"]) for answer in found] == [
        (character, f"LABEL_{tag}") for character, tag in zip(text, tags.tolist(), strict=True)
    ]
    vectors = pipeline("feature-extraction", str(directory))(text)
    torch.testing.assert_close(torch.tensor(vectors), states, rtol=1e-4, atol=1e-5)

    entails = {0: "contradiction", 1: "neutral", 2: "entailment"}
    classifier.config.id2label, classifier.config.label2id = entails, {label: i for i, label in entails.items()}
    judge = pipeline("zero-shot-classification", classifier, tokenizer=tokenizer, hypothesis_template="天{}。")
    answer = judge(text, candidate_labels=["地玄", "宇宙", "洪荒"])
    pairs = tokenizer([text] * 3, [f"天{label}。" for label in answer["labels"]], return_tensors="pt")
    with torch.no_grad():
        shares = classifier(**pairs).logits[:, 2].softmax(0)
    assert answer["scores"] == pytest.approx(shares.tolist(), abs=1e-5)


def test_answers_are_found_where_they_start_and_end(directory: Path) -> None:
    """The loss by hand, none for an answer that was cut off; and padding neither starts nor ends one."""
    model = AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    tokenizer = GlyphCRMTokenizer.from_pretrained(directory)
    batch = tokenizer([TEXT[:3], TEXT[5:7]], [TEXT[8:20], TEXT[9:14]], padding=True, return_tensors="pt")
    starts, ends = torch.tensor([6, 700]), torch.tensor([9, 3])
    outputs = model(**batch, start_positions=starts, end_positions=ends)
    start, end = outputs.start_logits.log_softmax(-1), outputs.end_logits.log_softmax(-1)
    expected = -(start[0, 6] + (end[0, 9] + end[1, 3]) / 2) / 2
    torch.testing.assert_close(outputs.loss, expected)
    padding = batch["attention_mask"] == 0
    assert padding.any() and (start[padding] < -1e9).all() and (end[padding] < -1e9).all()
    alone = model(**tokenizer(TEXT[5:7], TEXT[9:14], return_tensors="pt"))
    torch.testing.assert_close(alone.start_logits[0], outputs.start_logits[1, : alone.start_logits.shape[1]])
