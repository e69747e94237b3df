"""The baseline is transformers' BERT, on this project's batches."""

from __future__ import annotations

import numpy as np
import torch
from transformers import BertForPreTraining

from glyphcrm.configuration import preset
from glyphcrm.data.collator import padded_batch
from glyphcrm.modeling.bert import BertBaseline, bert_config
from tests.classic import VOCABULARY_SIZE


def test_losses_and_gradients_are_those_of_transformers_bert() -> None:
    torch.manual_seed(0)
    config = preset("nano", vocab_size=VOCABULARY_SIZE, num_glyphs=VOCABULARY_SIZE + 4)
    baseline = BertBaseline(bert_config(config)).eval()
    plain = baseline.plain().eval()
    assert type(plain) is BertForPreTraining
    rng = np.random.default_rng(0)
    samples = []
    for length in (9, 17):
        ids = rng.integers(5, VOCABULARY_SIZE + 4, length)  # some can be read only: [UNK] to a BERT
        ids[1] = VOCABULARY_SIZE + 1
        labels = np.where(rng.random(length) < 0.4, rng.integers(5, VOCABULARY_SIZE + 4, length), -100)
        labels[2] = VOCABULARY_SIZE
        samples.append(
            {
                "input_ids": ids,
                "labels": labels,
                "token_type_ids": (np.arange(length) > 5).astype(np.int64),
                "next_sentence_label": np.array(length % 2),
            }
        )
    batch = padded_batch(samples)
    input_ids = batch["glyph_ids"][batch["glyph_index"]]
    outputs = baseline(**batch | {"input_ids": input_ids})
    outputs.loss.backward()

    expected = plain(
        input_ids=torch.where(input_ids < VOCABULARY_SIZE, input_ids, 1),
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
        labels=torch.where(batch["labels"] < VOCABULARY_SIZE, batch["labels"], 1),
        next_sentence_label=batch["next_sentence_label"],
    )
    expected.loss.backward()
    torch.testing.assert_close(outputs.loss, expected.loss)
    torch.testing.assert_close(
        outputs.prediction_logits, expected.prediction_logits.flatten(0, 1)[batch["prediction_index"]]
    )
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in baseline.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=lambda text, name=name: f"{name}: {text}")


def test_it_has_the_encoder_of_glyphcrm_and_an_embedding_table_for_what_can_be_predicted() -> None:
    config = preset("base")
    with torch.device("meta"):
        bert = BertBaseline(bert_config(config))
    # bert-base-chinese without its 21,128-row table (arXiv:1810.04805), and with a row for each of 18,612 characters.
    assert bert.bert.num_parameters() == 102_267_648 - (21_128 - 18_612) * 768
    assert bert.get_output_embeddings().weight is bert.get_input_embeddings().weight


def test_a_step_reads_no_number_from_the_device() -> None:
    """On "meta" there are none to be read."""
    config = preset("nano", vocab_size=40, num_glyphs=40)
    model = BertBaseline.for_config(config, attn_implementation="sdpa").train().to("meta")
    ids, ones = (torch.ones(2, 6, dtype=torch.int64, device="meta") for _ in range(2))
    index, pairs = (torch.zeros(2, dtype=torch.int64, device="meta") for _ in range(2))
    outputs = model(ids, ones, ones, labels=ids, prediction_index=index, next_sentence_label=pairs)
    assert outputs.loss.is_meta
