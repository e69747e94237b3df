"""transformers' pipelines with the fast tokenizer: names with their real places, targets that cannot be predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, pipeline
from transformers.modeling_outputs import TokenClassifierOutput

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForTokenClassification
from glyphcrm.tokenization import GlyphCRMTokenizer
from tests.classic import READ_ONLY, VOCABULARY_SIZE

LABELS = ("O", "B-PER", "I-PER")
TEXT = "天地玄 e\u0301黄\u200b宇，⽇月宙"
NAMES = {"玄 e\u0301黄": 3, "⽇月": 2}  # characters that are seen, by name


@pytest.fixture
def tagger(atlas: GlyphAtlas, tokenizer: GlyphCRMTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tagger whose head knows the names by their characters."""
    tag_of = dict.fromkeys(tokenizer(" ".join(NAMES), add_special_tokens=False)["input_ids"], 2)
    tag_of |= {tokenizer(name, add_special_tokens=False)["input_ids"][0]: 1 for name in NAMES}

    def forward(self: Any, input_ids: torch.Tensor, **_: Any) -> TokenClassifierOutput:
        tags = torch.tensor([[tag_of.get(i, 0) for i in row] for row in input_ids.tolist()])
        return TokenClassifierOutput(logits=10.0 * torch.nn.functional.one_hot(tags, len(LABELS)))  # type: ignore[arg-type]

    monkeypatch.setattr(GlyphCRMForTokenClassification, "forward", forward)
    config = preset("nano", vocab_size=VOCABULARY_SIZE, id2label=dict(enumerate(LABELS)))
    save_checkpoint(GlyphCRMForTokenClassification.from_atlas(config, atlas), tokenizer, tmp_path / "tagger")
    return tmp_path / "tagger"


@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_names_have_their_real_ends_in_the_text(tagger: Path, strategy: str, stride: int | None) -> None:
    tokenizer = GlyphCRMTokenizer.from_pretrained(tagger, model_max_length=64 if stride is None else 9)
    find = pipeline("ner", str(tagger), tokenizer=tokenizer, aggregation_strategy=strategy, stride=stride)
    text = TEXT if stride is None else TEXT + "荒" + TEXT
    found = [(text[name["start"] : name["end"]], name["entity_group"]) for name in find(text)]
    assert found == [(name, "PER") for name in NAMES] * (1 if stride is None else 2)


def test_every_token_has_its_place_without_aggregation(tagger: Path) -> None:
    find = pipeline("ner", str(tagger), aggregation_strategy="none")
    assert [TEXT[t["start"] : t["end"]] for t in find(TEXT)] == ["玄", "e\u0301", "黄", "⽇", "月"]


def test_a_target_that_is_read_but_not_predicted_is_unknown(directory: Path) -> None:
    fill = pipeline("fill-mask", str(directory))
    with pytest.warns(UserWarning, match=f"reads but does not predict.*{READ_ONLY[0]}"):
        answers = fill("天[MASK]玄", targets=[READ_ONLY[0], "地"])
    assert {answer["token_str"] for answer in answers} == {"[UNK]", "地"}
    with pytest.warns(UserWarning, match="taken as"):
        assert len(fill("天[MASK]玄", targets=list(READ_ONLY))) == 1


def test_the_targets_of_other_models_are_as_without_us() -> None:
    """Of one whose tokenizer knows no unknown token, for instance."""
    words = {word: i for i, word in enumerate(["[MASK]", "a", "b", "c"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    fill = pipeline("fill-mask", BertForMaskedLM(config), tokenizer=tokenizer)
    assert {answer["token_str"] for answer in fill("a [MASK] c", targets=["b", "c"])} == {"b", "c"}
