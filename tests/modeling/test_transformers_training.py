"""What transformers' users do with a model before and while they train it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother

from glyphcrm.configuration import preset
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import (
    GlyphCRMForMaskedLM,
    GlyphCRMForMultipleChoice,
    GlyphCRMForPreTraining,
    GlyphCRMForQuestionAnswering,
    GlyphCRMForTokenClassification,
)
from glyphcrm.modeling.heads import HEADS, GlyphCRMHead
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import TEXT, VOCABULARY_SIZE


def ids() -> Tensor:
    return torch.tensor([[2, 7, 8, 9, 3]])


def test_blocks_that_a_checkpoint_lacks_are_initialised(directory: Path) -> None:
    deeper = AutoModelForMaskedLM.from_pretrained(directory, num_hidden_layers=5)
    for block in deeper.glyphcrm.blocks[3:]:
        for norm in (block.attention_norm, block.output_norm):
            assert (norm.weight == 1).all() and (norm.bias == 0).all()
    assert deeper(ids()).logits.isfinite().all()


def test_a_model_from_the_meta_device_is_initialised(atlas: GlyphAtlas) -> None:
    config = preset("nano", vocab_size=VOCABULARY_SIZE, num_glyphs=len(atlas))
    with torch.device("meta"):
        model = GlyphCRMForMaskedLM(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
    model.init_weights()
    model.set_atlas(atlas)
    assert model.eval()(ids()).logits.isfinite().all()
    assert all((norm.weight == 1).all() for norm in model.modules() if isinstance(norm, nn.LayerNorm))


@pytest.mark.parametrize("assign", [False, True])
def test_weights_loaded_into_a_model_from_the_meta_device(assign: bool, model: GlyphCRMForPreTraining) -> None:
    """With them comes all that it reads, the position channels too, which no file of weights holds."""
    expected = model(ids()).prediction_logits
    with torch.device("meta"):
        again = GlyphCRMForPreTraining(model.config)
    if not assign:
        again.to_empty(device="cpu")
    again.load_state_dict(model.state_dict(), assign=assign)
    assert torch.equal(again.eval()(ids()).prediction_logits, expected)
    positions = again.glyphcrm.hanglyph.positions
    again.load_state_dict(model.state_dict())
    assert again.glyphcrm.hanglyph.positions is positions  # as recorded graphs need it


def test_a_model_without_pictures_says_so(directory: Path, atlas: GlyphAtlas) -> None:
    blank = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(directory))
    with pytest.raises(UserError, match=r"all pictures of the model are blank.*set_atlas\(\)"):
        blank(ids())
    blank.set_atlas(atlas)
    assert blank(ids()).logits.isfinite().all()


@pytest.mark.parametrize("asked", [{"use_reentrant": True}, {"use_reentrant": False}, None])
def test_checkpointing_of_either_kind_gives_all_gradients(asked: Any, model: GlyphCRMForPreTraining) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or hasattr(module, "scaling") or type(module).__name__ == "AddNorm":
            module.p = 0.0
    inputs = {"input_ids": ids(), "labels": ids(), "next_sentence_label": torch.tensor([1])}
    found = []
    for _ in range(2):
        model.zero_grad()
        model(**inputs).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=asked)
    assert found[0].keys() == found[1].keys() and any("hanglyph" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)
    model.gradient_checkpointing_disable()
    model(**inputs)


def test_attention_maps_whatever_the_implementation(model: GlyphCRMForPreTraining) -> None:
    """The fused ones have none, so the eager one answers: its maps, and states that agree with the fused ones'."""
    inputs = {"input_ids": torch.cat([ids(), ids()]), "attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2])}
    expected = model.glyphcrm(**inputs).last_hidden_state
    maps = model(**inputs, output_attentions=True).attentions
    assert [tuple(m.shape) for m in maps] == [(2, 2, 5, 5)] * 3
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 2, 5))
    assert (maps[2][1, :, :, 3:] == 0).all()
    outputs = model.glyphcrm(**inputs, output_attentions=True)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(outputs.last_hidden_state[real], expected[real])
    square = inputs["attention_mask"][:, None, None].bool().expand(2, 1, 5, 5)
    again = model.glyphcrm(**inputs | {"attention_mask": square}, output_attentions=True)
    torch.testing.assert_close(again.attentions[2][real.nonzero()[:, 0]], maps[2][real.nonzero()[:, 0]])
    row = model.glyphcrm(ids().repeat(1, 2), cu_seq_lens_q=torch.tensor([0, 5, 10]), output_attentions=True)
    assert (row.attentions[0][0, :, :5, 5:] == 0).all() and (row.attentions[0][0, :, 5:, :5] == 0).all()


@pytest.mark.parametrize("head", HEADS.values(), ids=lambda head: head.__name__)
def test_trainer_evaluates_every_head(
    head: type[GlyphCRMHead], directory: Path, tokenizer: GlyphCRMTokenizer, tmp_path: Path
) -> None:
    """With transformers' own collators: `evaluate` returns a loss, `predict` a row for each example."""
    texts = [TEXT[i : i + 4 + i % 3] for i in range(10)]
    samples = [dict(tokenizer(text)) for text in texts]
    collator: Any = DataCollatorWithPadding(tokenizer)
    if head in (GlyphCRMForPreTraining, GlyphCRMForMaskedLM):
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5, seed=0)
        if head is GlyphCRMForPreTraining:  # as transformers' BERT, it has two labels
            samples = [sample | {"next_sentence_label": i % 2} for i, sample in enumerate(samples)]
    elif head is GlyphCRMForTokenClassification:
        collator = DataCollatorForTokenClassification(tokenizer)
        samples = [sample | {"labels": [1] * len(sample["input_ids"])} for sample in samples]
    elif head is GlyphCRMForMultipleChoice:
        collator = DataCollatorForMultipleChoice(tokenizer)
        choices = [dict(tokenizer([text] * 3, [TEXT[20:24], TEXT[21:23], TEXT[30:37]])) for text in texts]
        samples = [sample | {"label": i % 3} for i, sample in enumerate(choices)]
    elif head is GlyphCRMForQuestionAnswering:
        samples = [sample | {"start_positions": 1, "end_positions": 2} for sample in samples]
    else:
        samples = [sample | {"label": i % 2} for i, sample in enumerate(samples)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), per_device_eval_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(
        head.from_pretrained(directory),
        arguments,
        data_collator=collator,
        eval_dataset=samples,
        processing_class=tokenizer,
    )
    assert trainer.evaluate()["eval_loss"] > 0
    predicted = trainer.predict(samples)
    assert predicted.metrics["test_loss"] > 0 and predicted.label_ids is not None
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    assert len(logits) == 10 and logits.ndim >= 2


def test_transformers_flattening_collator(directory: Path, tokenizer: GlyphCRMTokenizer) -> None:
    """The packed row that `DataCollatorWithFlattening` makes has the loss of its sequences."""
    tagger = GlyphCRMForTokenClassification.from_pretrained(directory, num_labels=3).eval()
    samples = [{"input_ids": tokenizer(text)["input_ids"]} for text in ("天地玄", "黄", "宇宙洪荒日")]
    for sample in samples:
        sample["labels"] = [-100, *(i % 3 for i in sample["input_ids"][1:])]
    row = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(samples)
    losses = [tagger(**{name: torch.tensor([value]) for name, value in sample.items()}).loss for sample in samples]
    counts = [len(sample["labels"]) - 1 for sample in samples]
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(tagger(**row).loss, expected)


def test_whole_words_are_masked(directory: Path, tokenizer: GlyphCRMTokenizer) -> None:
    """By transformers' collator, to which what stands without a blank between is a word."""
    collator = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0, mlm_probability=0.3, seed=5
    )
    texts = ["天地 玄黄宇", "洪荒", "日 月盈昃"]
    encoded = tokenizer(texts, return_offsets_mapping=True, padding=True)  # no collator pads offsets
    batch = collator([{name: values[i] for name, values in encoded.items()} for i in range(3)])
    hidden = batch["input_ids"] == tokenizer.mask_token_id
    assert ((batch["labels"] != -100) == hidden).all()
    words = [hidden[0, 1:3], hidden[0, 3:6], hidden[1, 1:3], hidden[2, 1:2], hidden[2, 2:5]]
    assert {len(word.unique()) for word in words} == {1}
    assert 0 < hidden.sum() < 11 == sum(map(len, words))
    assert torch.isfinite(GlyphCRMForMaskedLM.from_pretrained(directory)(**batch).loss)


def test_label_smoothing_where_only_predicted_characters_are_labels(
    directory: Path, tokenizer: GlyphCRMTokenizer
) -> None:
    model = GlyphCRMForMaskedLM.from_pretrained(directory).eval()
    labels = torch.tensor([[5, 6, model.config.vocab_size]])
    outputs, smooth = model(input_ids=labels), LabelSmoother()
    with pytest.raises((IndexError, RuntimeError)):
        smooth(outputs, labels)
    labels[labels >= model.config.vocab_size] = -100
    assert torch.isfinite(smooth(outputs, labels))
