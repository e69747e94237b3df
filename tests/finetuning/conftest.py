"""Three small models, as directories, and two tasks that they can learn, as files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, BertTokenizer

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from tests.classic import TEXT

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
POSITIONS = 64
CHARACTERS = TEXT[:-2]  # without the marks


@pytest.fixture(scope="session")
def bert_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    """A word-piece tokenizer that lower-cases: the characters of the atlas, and pieces of one word."""
    directory = tmp_path_factory.mktemp("pieces")
    tokens = [*SPECIAL_TOKENS, *TEXT, "hel", "##lo", "a", "##b"]
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    tokenizer: BertTokenizer = BertTokenizer.from_pretrained(directory)
    return tokenizer


def bert(vocabulary: int) -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(BertConfig(vocab_size=vocabulary, max_position_embeddings=POSITIONS, **SIZES))


@pytest.fixture(scope="session")
def directories(
    atlas: object,
    bert_tokenizer: BertTokenizer,
    tokenizer: GlyphCRMTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A pre-trained GlyphCRM, a BERT with word pieces, and a BERT with GlyphCRM's tokenizer."""
    from glyphcrm.configuration import preset
    from glyphcrm.glyphs.atlas import GlyphAtlas

    assert isinstance(atlas, GlyphAtlas)
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = GlyphCRMForPreTraining.from_atlas(preset("nano", vocab_size=len(SPECIAL_TOKENS) + len(TEXT)), atlas)
    save_checkpoint(model, tokenizer, root / "glyphcrm")
    save_checkpoint(bert(len(bert_tokenizer)), bert_tokenizer, root / "bert")
    save_checkpoint(bert(len(tokenizer)), tokenizer, root / "twin")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts mostly of the first half of the characters, and others mostly of the second."""
    rng = random.Random(0)
    directory = tmp_path_factory.mktemp("sentiment")
    for name, count in (("train", 96), ("dev", 24), ("test", 24)):
        rows = ["text\tlabel"]
        for number in range(count):
            label = "有无"[number % 2]
            halves = CHARACTERS[:26], CHARACTERS[26:]
            weights = (8, 1) if label == "有" else (1, 8)
            text = "".join(rng.choice(rng.choices(halves, weights)[0]) for _ in range(rng.randint(8, 18)))
            rows.append(f"{text}\t{label}")
        (directory / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    settings = (
        'kind = "sentence"\ntrain = "train.tsv"\ndev = "dev.tsv"\ntest = "test.tsv"\ntext = "text"\nlabel = "label"\n'
    )
    (directory / "sentiment.toml").write_text(
        settings + "learning_rate = 0.001\nepochs = 8\nmax_length = 24\nbatch_size = 8\n", encoding="utf-8"
    )
    return directory / "sentiment.toml"


@pytest.fixture(scope="session")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in which 玄黄 is always an entity; one of them longer than any model here can read."""
    rng = random.Random(1)
    directory = tmp_path_factory.mktemp("names")
    for name, count in (("train", 48), ("dev", 12), ("test", 12)):
        lines = []
        for number in range(count):
            length = 90 if number == 0 else rng.randint(4, 14)
            sentence = [*rng.choices(CHARACTERS.replace("玄", "").replace("黄", ""), k=length), "。"]
            tags = ["O"] * len(sentence)
            at = rng.randrange(length)
            sentence[at:at], tags[at:at] = "玄黄", ["B-LOC", "I-LOC"]
            lines += [f"{character}\t{tag}" for character, tag in zip(sentence, tags, strict=True)] + [""]
        (directory / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "names.toml").write_text(
        'kind = "tagging"\ntrain = "train.txt"\ndev = "dev.txt"\ntest = "test.txt"\n'
        "learning_rate = 0.005\nepochs = 2\nmax_length = 64\nbatch_size = 8\n",
        encoding="utf-8",
    )
    return directory / "names.toml"
