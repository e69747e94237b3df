"""`glyphcrm convert-bert` against the BERT that it starts from, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForPreTraining,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    RobertaConfig,
)

from glyphcrm import GlyphCRMForPreTraining
from glyphcrm.cli.entry import main
from tests.conversion.glyphcrm_commands import Command, Taken, run_commands

ATOL = 1e-5
HAN = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会"
    "可主发年动同工也能下过子说产种面而方后多定行学法所民得经"
)
LETTERS = "ab1，。"
# None of these is a character of ours: the default font has no emoji and no Linear B, and no text holds the
# compatibility ideograph U+F901, which the font draws and NFC replaces.
NOT_OURS = ["##的", "##ing", "hello", "😀", "𐀀", "\uf901"]
HAN_BLOCKS = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000))  # those that the default font has all of
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_vocabulary() -> list[str]:
    """As in the real one: special tokens are not the first rows, word pieces stand among characters."""
    tokens = ["[PAD]", "[unused1]", "[unused2]", *SPECIALS[1:], *LETTERS, *HAN]
    for i, token in enumerate(NOT_OURS):
        tokens.insert(12 + 7 * i, token)
    return tokens


@dataclass(frozen=True)
class Bert:
    """A small BERT of random weights, and where it is saved."""

    directory: Path
    model: BertForPreTraining
    tokens: list[str]


@dataclass(frozen=True)
class Converted:
    """What became of it."""

    directory: Path
    model: GlyphCRMForPreTraining


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Bert:
    directory = tmp_path_factory.mktemp("bert")
    tokens = bert_vocabulary()
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=24,
        layer_norm_eps=1e-3,  # large enough to be seen
    )
    torch.manual_seed(0)
    model = BertForPreTraining(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # no bias is 0, no norm the identity
            scale = 0.2 if parameter.ndim == 2 else 0.1
            parameter.normal_(float(name.endswith("LayerNorm.weight")), scale)
    model.save_pretrained(directory)
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    BertTokenizer.from_pretrained(directory).save_pretrained(directory)
    return Bert(directory, model, tokens)


@pytest.fixture(scope="module")
def converted(bert: Bert, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Converted once: it draws all characters of the default font."""
    out = tmp_path_factory.mktemp("converted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        # 9x9 convolutions of 64 channels: ten seconds for the 512 characters that are otherwise looked at.
        patch.setattr("glyphcrm.modeling.model.WHITENING_SAMPLE", 64)
        code = main(["convert-bert", "--bert", str(bert.directory), "--out", str(out)])
    assert code == 0
    return Converted(out, AutoModelForPreTraining.from_pretrained(out).eval())


def shared_rows(bert: Bert) -> torch.Tensor:
    """BERT's rows of the tokens that both predict, in the converted model's order."""
    characters = [token for token in bert.tokens if token in LETTERS or token in HAN]
    return torch.tensor([bert.tokens.index(token) for token in [*SPECIALS, *characters]])


def test_vocabulary_is_the_special_tokens_then_the_characters_in_order(bert: Bert, converted: Converted) -> None:
    rows = shared_rows(bert)
    tokenizer = AutoTokenizer.from_pretrained(converted.directory)
    expected = [bert.tokens[row] for row in rows]
    assert len(expected) == len(SPECIALS) + len(LETTERS) + len(HAN)
    assert converted.model.config.vocab_size == len(expected)
    assert tokenizer.convert_ids_to_tokens(range(len(expected))) == expected
    assert not set(NOT_OURS) & set(tokenizer.get_vocab())

    # Every other Han character of the default font can be read.
    assert {chr(point) for block in HAN_BLOCKS for point in block} <= set(tokenizer.tokens)
    assert len(tokenizer) == converted.model.config.num_glyphs


@torch.no_grad()
def test_encoder_and_heads_are_berts(bert: Bert, converted: Converted) -> None:
    ours, theirs = converted.model, bert.model
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "inputs_embeds": torch.randn(2, 24, theirs.config.hidden_size, generator=generator),
        "token_type_ids": torch.tensor([[0] * 9 + [1] * 15, [0] * 4 + [1] * 20]),
        "attention_mask": torch.tensor([[1] * 24, [1] * 17 + [0] * 7]),
    }
    expected = theirs.bert(**inputs, output_hidden_states=True)
    actual = ours(**inputs, output_hidden_states=True)
    real = inputs["attention_mask"].bool()
    for mine, wanted in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], wanted[real], rtol=0, atol=ATOL)

    mlm, nsp = theirs.cls(expected.last_hidden_state, expected.pooler_output)
    shared = mlm[..., shared_rows(bert)]
    torch.testing.assert_close(actual.prediction_logits[real], shared[real], rtol=0, atol=ATOL)
    torch.testing.assert_close(actual.seq_relationship_logits, nsp, rtol=0, atol=ATOL)
    assert mlm.std() > 0.3  # the comparison is not of zeros


@torch.no_grad()
def test_it_reads_text_with_a_new_hanglyph(converted: Converted) -> None:
    model, tokenizer = converted.model, AutoTokenizer.from_pretrained(converted.directory)
    inputs = tokenizer("中国人民", "龘出生于大地", return_tensors="pt")
    output = model(**inputs)
    assert output.prediction_logits.shape == (1, 13, model.config.vocab_size)
    assert output.prediction_logits.isfinite().all()

    # The characters look different from the start: see "Initialisation matters" in the design.
    vectors = model.glyphcrm.hanglyph(inputs["input_ids"].unique(), model.glyphcrm.glyph_table.bitmaps)
    for vector in vectors:
        assert vector.std(dim=0).mean() > 0.4 * model.config.glyph_initializer_spread
        assert vector.mean().abs() < 0.4 * model.config.glyph_initializer_spread


@dataclass
class BadInput:
    """A case in the making: a copy of the BERT to spoil."""

    directory: Path
    out: Path
    canary: Path

    @property
    def weights(self) -> Path:
        return self.directory / "model.safetensors"

    def remove(self, *names: str) -> Path:
        for name in names:
            (self.directory / name).unlink()
        return self.directory

    def write(self, name: str, content: str) -> Path:
        (self.directory / name).write_text(content, "utf-8")
        return self.directory

    def configure(self, **changes: object) -> Path:
        found = json.loads((self.directory / "config.json").read_text("utf-8"))
        return self.write("config.json", json.dumps(found | changes))

    def rewrite_vocabulary(self, tokens: list[str]) -> Path:
        self.remove("tokenizer.json", "tokenizer_config.json")
        return self.write("vocab.txt", "".join(f"{token}\n" for token in tokens))


def no_directory(case: BadInput) -> Path:
    shutil.rmtree(case.directory)
    return case.directory


def config_with_code(case: BadInput) -> Path:
    case.write("code.py", f"import os\nos.mkdir({str(case.canary)!r})\nclass Config: pass\n")
    return case.configure(model_type="no_such_model", auto_map={"AutoConfig": "code.Config"})


def roberta(case: BadInput) -> Path:
    RobertaConfig(hidden_size=32).save_pretrained(case.directory)
    return case.directory


def truncated_weights(case: BadInput) -> Path:
    case.weights.write_bytes(case.weights.read_bytes()[:1000])
    return case.directory


def weights_without_a_part(case: BadInput) -> Path:
    parameters = load_file(case.weights)
    del parameters["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(parameters, case.weights, {"format": "pt"})
    return case.directory


def code_in_the_weights(case: BadInput) -> Path:
    case.weights.unlink()
    return case.write("pytorch_model.bin", f"cos\nmkdir\n(S{str(case.canary)!r}\ntR.")  # a pickle, protocol 0


def out_that_is_in_use(case: BadInput) -> Path:
    case.out.mkdir()
    (case.out / "precious.txt").write_text("keep me")
    return case.out


# Each spoils an input, and returns what the error has to name.
SPOILS: dict[str, Callable[[BadInput], Path]] = {
    "no directory": no_directory,
    "no config": lambda case: case.remove("config.json"),
    "config that is no JSON": lambda case: case.write("config.json", '{"model_type": "bert",'),
    "config that is a list": lambda case: case.write("config.json", "[]"),
    "config of an unknown model": lambda case: case.configure(model_type="no_such_model"),
    "config with code": config_with_code,
    "config of odd sizes": lambda case: case.configure(num_attention_heads=5),
    "RoBERTa": roberta,
    "decoder": lambda case: case.configure(is_decoder=True),
    "no weights": lambda case: case.remove("model.safetensors"),
    "truncated weights": truncated_weights,
    "weights without a part": weights_without_a_part,
    "weights of other sizes": lambda case: case.configure(intermediate_size=81),
    "code in the weights": code_in_the_weights,
    "no tokenizer": lambda case: case.remove("vocab.txt", "tokenizer.json", "tokenizer_config.json"),
    "vocabulary without [SEP]": lambda case: case.rewrite_vocabulary(
        [token.replace("[SEP]", "[END]") for token in bert_vocabulary()]
    ),
    "vocabulary that the weights lack": lambda case: case.rewrite_vocabulary([*bert_vocabulary(), "丰"]),
    "out that is in use": out_that_is_in_use,
}


@pytest.fixture(scope="module")
def taken(bert: Bert, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Taken]:
    """What became of each bad input."""
    root = tmp_path_factory.mktemp("refusals")
    commands = {}
    for number, (name, spoil) in enumerate(SPOILS.items()):
        folder = root / f"case{number}"
        shutil.copytree(bert.directory, folder / "bert")
        (folder / "parent").mkdir()
        case = BadInput(folder / "bert", folder / "parent" / "out", folder / "canary")
        words = ["convert-bert", "--bert", case.directory, "--out", case.out]
        commands[name] = Command(words, spoil(case), case.out.parent, case.canary)
    return run_commands(commands, root)


@pytest.mark.parametrize("case", SPOILS)
def test_bad_input_is_refused_in_one_line(taken: dict[str, Taken], case: str) -> None:
    taken[case].assert_refused()
