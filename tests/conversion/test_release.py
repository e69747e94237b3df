"""`glyphcrm convert-release` against the released model in float64 NumPy, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glyphcrm_kernels import glyph_stem
from torch import nn
from transformers import AutoModelForPreTraining, AutoTokenizer, BertConfig, BertForPreTraining

from glyphcrm import GlyphCRMForPreTraining
from glyphcrm.cli.entry import main
from tests.conversion.glyphcrm_commands import Command, Taken, run_commands
from tests.conversion.release_reference import Stages, run_release

RELEASE = Path(__file__).parents[2].parent / "shared" / "data" / "characters"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ATOL = {torch.float32: 2e-5, torch.float64: 1e-10}
# The product adds up losses in float32, and builds the position channels in it.
LOSS_ATOL = 1e-5
POSITION_ATOL = 5e-8


@dataclass(frozen=True)
class Sizes:
    """Sizes of a released checkpoint; the defaults are those of the tests."""

    hidden: int = 128
    blocks: int = 3
    feed_forward: int = 192
    stem_channels: int = 8
    glyph_channels: int = 12
    vocabulary: int = 60
    positions: int = 40


FULL_SIZE = Sizes(768, 12, 3072, 64, 128, 18_612, 512)


def parameter_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter, in the order of the release."""
    d, ffn, c1, c2 = sizes.hidden, sizes.feed_forward, sizes.stem_channels, sizes.glyph_channels
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[:1]

    for name, rows in (
        ("word", sizes.vocabulary),
        ("position", sizes.positions),
        ("token_type", 2),
    ):
        shapes[f"bert.embeddings.{name}_embeddings.weight"] = (rows, d)
    add("bert.embeddings.LayerNorm", d)
    for block in range(sizes.blocks):
        name = f"bert.encoder.layer.{block}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            add(f"{name}.attention.{part}", d, d)
        add(f"{name}.attention.output.LayerNorm", d)
        add(f"{name}.intermediate.dense", ffn, d)
        add(f"{name}.output.dense", d, ffn)
        add(f"{name}.output.LayerNorm", d)
    add("cnn_embedding.conv_pre", c1, 3, 3, 3)
    for i in (1, 2, 3):
        add(f"cnn_embedding.conv1_{i}", c1, c1, 9, 9)
    add("cnn_embedding.conv_pre_2", c2, c1, 3, 3)
    for i in (1, 2, 3):
        add(f"cnn_embedding.conv2_{i}", c2, c2, 3, 3)
    for name, features in (("fc1", c2 * 9), ("first_linear", c1 * 144), ("second_linear", c2 * 9)):
        add(f"cnn_embedding.{name}", d, features)
    add("pooler.dense", d, d)
    add("nsp.seq_relationship", 2, d)
    shapes["mlm.predictions.bias"] = (sizes.vocabulary,)
    add("mlm.predictions.transform.dense", d, d)
    add("mlm.predictions.transform.LayerNorm", d)
    add("mlm.predictions.decoder", sizes.vocabulary, d)
    return shapes


def random_parameters(sizes: Sizes) -> dict[str, np.ndarray]:
    """Weights at which every part has a say: no bias is 0, no norm is the identity, no tanh is saturated."""
    rng = np.random.default_rng(0)
    parameters = {}
    for name, shape in parameter_shapes(sizes).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            values = values * np.float32(0.1) + np.float32(name.endswith("LayerNorm.weight"))
        elif "_embeddings" in name:
            values *= np.float32(0.5)
        else:
            gain = 2.0 if len(shape) == 4 else 0.25 if name.startswith("cnn_embedding") else 1.0
            values *= np.float32(np.sqrt(gain / np.prod(shape[1:])))
        parameters[name] = values
    parameters["mlm.predictions.bias"] = parameters["mlm.predictions.decoder.bias"]
    return parameters


@dataclass(frozen=True)
class Release:
    """A released checkpoint on disk, and what is in it."""

    directory: Path
    parameters: dict[str, np.ndarray]
    tokens: list[str]
    bitmaps: np.ndarray

    @property
    def arguments(self) -> list[str | Path]:
        """The options of `glyphcrm convert-release` that name its files."""
        weights, vocabulary, bitmaps = (self.directory / n for n in ("weights.pt", "vocab.txt", "bitmaps.npz"))
        return ["--weights", weights, "--vocab", vocabulary, "--bitmaps", bitmaps]

    def write(self, directory: Path) -> Release:
        """Write the three files to a new directory."""
        directory.mkdir()
        model = {name: torch.from_numpy(values) for name, values in self.parameters.items()}
        torch.save({"model": model, "epoch": 1}, directory / "weights.pt")
        (directory / "vocab.txt").write_bytes(vocabulary(self.tokens))
        np.savez_compressed(directory / "bitmaps.npz", bitmaps=self.bitmaps)
        return replace(self, directory=directory)

    def convert(self) -> Path:
        """Convert it, and return the directory with the result."""
        out = self.directory / "converted"
        assert main(["convert-release", *map(str, self.arguments), "--out", str(out)]) == 0
        return out


def made_up_images(count: int) -> np.ndarray:
    """Packed pictures of three strokes each, asymmetric; the first is blank, as [PAD]'s."""
    rng = np.random.default_rng(1)
    images = np.zeros((count, 48, 48), np.uint8)
    for image in images[1:]:
        for row, column in rng.integers(0, 36, (3, 2)):
            height, width = rng.permutation([rng.integers(2, 5), rng.integers(8, 40)])
            image[row : row + height, column : column + width] = 1
    return np.packbits(images.reshape(count, -1), axis=1)


def released_rows(count: int | None = None) -> tuple[list[str], np.ndarray]:
    """The first tokens and images of the real release."""
    if not RELEASE.exists():
        pytest.skip("the released vocabulary and images are not here")
    tokens = (RELEASE / "glyphcrm-release-vocab.txt").read_text("utf-8").removesuffix("\n").split("\n")
    with np.load(RELEASE / "glyphcrm-release-bitmaps.npz") as arrays:
        return tokens[:count], arrays["bitmaps"][:count]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A small release."""
    sizes = Sizes()
    tokens = [*SPECIALS, *(chr(0x4E00 + i) for i in range(sizes.vocabulary - len(SPECIALS)))]
    release = Release(Path(), random_parameters(sizes), tokens, made_up_images(sizes.vocabulary))
    return release.write(tmp_path_factory.mktemp("made_up") / "release")


@pytest.fixture(scope="module")
def converted(made_up: Release) -> Path:
    """The small release, converted in this process."""
    return made_up.convert()


@dataclass(frozen=True)
class Batch:
    """Two sentence pairs of different lengths, and labels."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    next_sentence_label: torch.Tensor

    @classmethod
    def draw(cls, release: Release, directory: Path) -> Batch:
        """Encode text of the release's characters, and one that it lacks, with the converted tokenizer."""
        tokenizer = AutoTokenizer.from_pretrained(directory)
        a, b, c, d, e, f, g = release.tokens[5:12]
        first, second = (f"{a}{b}{a}{c}𰻞", f"{d}{e}{f}{a}"), (f"{g}{c}", f"{b}")
        inputs = tokenizer(*zip(first, second, strict=True), padding=True, return_tensors="pt")
        rows = [
            ["[CLS]", a, b, a, c, "[UNK]", "[SEP]", d, e, f, a, "[SEP]"],
            ["[CLS]", g, c, "[SEP]", b, "[SEP]"] + ["[PAD]"] * 6,
        ]
        expected = [[release.tokens.index(token) for token in row] for row in rows]
        assert inputs["input_ids"].tolist() == expected
        assert inputs["token_type_ids"].tolist()[0] == [0] * 7 + [1] * 5
        assert inputs["attention_mask"].sum(1).tolist() == [12, 6]
        labels = torch.full((2, 12), -100)
        labels[0, [1, 4, 9]] = torch.tensor([7, len(release.tokens) - 1, 5])
        labels[1, 2] = 3
        return cls(dict(inputs), labels, torch.tensor([1, 0]))

    def reference(self, release: Release) -> Stages:
        """What the released model makes of this batch."""
        arrays = {name: tensor.numpy() for name, tensor in self.inputs.items()}
        return run_release(release.parameters, release.bitmaps, **arrays)


@contextmanager
def inputs_of(*modules: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what the modules are called with."""
    seen: list[torch.Tensor] = []
    hooks = [module.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for module in modules]
    yield seen
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def run_glyphs(model: GlyphCRMForPreTraining, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """HanGlyph's stages as the converted model computes them."""
    hanglyph, bitmaps = model.glyphcrm.hanglyph, model.glyphcrm.glyph_table.bitmaps
    stem, _ = glyph_stem(rows, bitmaps, hanglyph.stem.weight, hanglyph.stem.bias, hanglyph.positions)
    with inputs_of(hanglyph.skip1, hanglyph.vector) as seen:
        vectors = hanglyph(rows, bitmaps)
    by_size = {flat.shape[1]: flat for flat in seen}
    return {
        "stem": stem,
        "block1": by_size[hanglyph.skip1.in_features],
        "block2": by_size[hanglyph.vector.in_features],
        "glyph": vectors.vector,
        "skip1": vectors.skip1,
        "skip2": vectors.skip2,
    }


def assert_close(name: str, actual: torch.Tensor, expected: np.ndarray, atol: float) -> None:
    assert np.isfinite(expected).all(), name
    np.testing.assert_allclose(actual.numpy().reshape(expected.shape), expected, rtol=0, atol=atol, err_msg=name)


def assert_stages_agree(model: GlyphCRMForPreTraining, batch: Batch, reference: Stages, dtype: torch.dtype) -> None:
    """Compare every stage of the model with the reference."""
    model = model.to(dtype).eval()
    atol = ATOL[dtype]
    expected = reference.glyphs
    positions = torch.from_numpy(expected.pictures[0, 1:])
    hanglyph = model.glyphcrm.hanglyph
    assert_close("position channels", hanglyph.positions, positions.numpy(), POSITION_ATOL)
    if dtype == torch.float64:
        hanglyph.positions = positions  # the model's own are rounded to float32

    for name, actual in run_glyphs(model, torch.from_numpy(reference.rows)).items():
        assert_close(name, actual, getattr(expected, name), atol)

    with torch.no_grad():
        output = model(
            **batch.inputs,
            labels=batch.labels,
            next_sentence_label=batch.next_sentence_label,
            output_hidden_states=True,
        )
    real = batch.inputs["attention_mask"].bool()
    assert len(output.hidden_states) == len(reference.hidden_states)
    for i, (actual, wanted) in enumerate(zip(output.hidden_states, reference.hidden_states, strict=True)):
        assert_close(f"hidden states {i}", actual[real], wanted[real.numpy()], atol)
    assert_close("MLM", output.prediction_logits[real], reference.mlm_logits[real.numpy()], atol)
    assert_close("NSP", output.seq_relationship_logits, reference.nsp_logits, atol)
    mlm_loss = reference.mlm_loss(batch.labels.numpy())
    nsp_loss = reference.nsp_loss(batch.next_sentence_label.numpy())
    losses = [output.mlm_loss.item(), output.nsp_loss.item(), output.loss.item()]
    np.testing.assert_allclose(losses, [mlm_loss, nsp_loss, mlm_loss + nsp_loss], rtol=0, atol=LOSS_ATOL)


def test_every_stage_agrees_with_the_released_model(made_up: Release, converted: Path) -> None:
    model = AutoModelForPreTraining.from_pretrained(converted)
    assert type(model) is GlyphCRMForPreTraining
    batch = Batch.draw(made_up, converted)
    reference = batch.reference(made_up)

    glyphs = reference.glyphs
    spreads = [np.std(vectors) for vectors in (glyphs.glyph, glyphs.skip1, glyphs.skip2)]
    assert min(spreads) > 0.1  # else the vectors would say little
    assert max(spreads) < 0.9  # else most tanhs would be saturated
    for dtype in (torch.float32, torch.float64):
        assert_stages_agree(model, batch, reference, dtype)


@pytest.mark.slow
def test_the_full_size_with_the_released_images_agrees(tmp_path: Path) -> None:
    tokens, bitmaps = released_rows()
    listed = json.loads((RELEASE / "glyphcrm-release-parameters.json").read_text())
    assert {name: list(shape) for name, shape in parameter_shapes(FULL_SIZE).items()} == listed
    release = Release(Path(), random_parameters(FULL_SIZE), tokens, bitmaps).write(tmp_path / "release")
    converted = release.convert()
    batch = Batch.draw(release, converted)
    model = GlyphCRMForPreTraining.from_pretrained(converted)
    assert model.num_parameters() == 111_311_222
    assert_stages_agree(model, batch, batch.reference(release), torch.float32)


def test_the_released_images_and_vocabulary_are_read_as_they_are(tmp_path: Path) -> None:
    sizes = Sizes(blocks=2)
    tokens, bitmaps = released_rows(sizes.vocabulary)
    release = Release(Path(), random_parameters(sizes), tokens, bitmaps).write(tmp_path / "release")
    converted = release.convert()
    batch = Batch.draw(release, converted)
    model = AutoModelForPreTraining.from_pretrained(converted)
    assert_stages_agree(model, batch, batch.reference(release), torch.float32)


def test_the_installed_command_writes_the_same_files(made_up: Release, converted: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "glyphcrm"
    out = tmp_path / "out"
    subprocess.run([command, "convert-release", *made_up.arguments, "--out", out], check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in converted.iterdir()}


def test_a_neighbour_is_left_alone(made_up: Release, tmp_path: Path) -> None:
    neighbour = tmp_path / "out.part"
    neighbour.mkdir()
    (neighbour / "precious.txt").write_text("keep me")
    main(["convert-release", *map(str, made_up.arguments), "--out", str(tmp_path / "out")])
    assert (neighbour / "precious.txt").read_text() == "keep me"


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@dataclass
class BadInput:
    """A case in the making: a small release to spoil."""

    files: Path
    release: Release

    @property
    def weights(self) -> Path:
        return self.files / "weights.pt"

    @property
    def vocabulary(self) -> Path:
        return self.files / "vocab.txt"

    @property
    def bitmaps(self) -> Path:
        return self.files / "bitmaps.npz"

    @property
    def out(self) -> Path:
        return self.files.parent / "parent" / "out"

    @property
    def canary(self) -> Path:
        return self.files.parent / "canary"

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(values) for name, values in self.release.parameters.items()}

    def save(self, parameters: object, key: str = "model", **others: object) -> Path:
        torch.save({key: parameters, "epoch": 1, **others}, self.weights)
        return self.weights


def keep_half(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def replace_with(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def remove(path: Path) -> Path:
    path.unlink()
    return path


def hybrid(name: str) -> Callable[[BadInput], str]:
    def spoil(case: BadInput) -> str:
        case.save(case.tensors() | {f"{name}.weight": torch.zeros(60, 128)})
        return name

    return spoil


def bert_checkpoint(case: BadInput) -> Path:
    config = BertConfig(vocab_size=60, hidden_size=64, num_hidden_layers=1, num_attention_heads=1)
    return case.save(BertForPreTraining(config).state_dict())


def without(*parts: str) -> Callable[[BadInput], Path]:
    """Leave out all parameters in whose names one of `parts` stands."""
    return lambda case: case.save({n: t for n, t in case.tensors().items() if not any(part in n for part in parts)})


def hidden_size_that_is_no_multiple_of_the_head_size(case: BadInput) -> Path:
    return case.save({name: torch.from_numpy(values) for name, values in random_parameters(Sizes(hidden=96)).items()})


def vocabulary(tokens: Sequence[str]) -> bytes:
    return "".join(f"{token}\n" for token in tokens).encode()


def vocabulary_with_a_word(case: BadInput) -> str:
    replace_with(case.vocabulary, vocabulary([*case.release.tokens[:-1], "##丁"]))
    return "##丁"


def bitmaps(**arrays: Callable[[BadInput], np.ndarray]) -> Callable[[BadInput], Path]:
    """Put other arrays into the .npz."""

    def spoil(case: BadInput) -> Path:
        np.savez(case.bitmaps, **{name: make(case) for name, make in arrays.items()})
        return case.bitmaps

    return spoil


def damaged_bitmaps(case: BadInput) -> Path:
    content = bytearray(case.bitmaps.read_bytes())
    name_size, extra_size = struct.unpack("<HH", content[26:30])
    content[30 + name_size + extra_size] = 0xFF  # a type of deflate block that there is not
    return replace_with(case.bitmaps, bytes(content))


def bare_array_as_bitmaps(case: BadInput) -> Path:
    with open(case.bitmaps, "wb") as file:
        np.save(file, case.release.bitmaps)
    return case.bitmaps


def out_that_is_in_use(case: BadInput) -> Path:
    case.out.mkdir(parents=True)
    (case.out / "precious.txt").write_text("keep me")
    return case.out


def out_that_is_a_file(case: BadInput) -> Path:
    case.out.parent.mkdir(parents=True)
    case.out.write_text("keep me")
    return case.out


def out_under_a_file(case: BadInput) -> Path:
    case.out.parent.write_text("keep me")
    return case.out


# Each spoils an input, and returns what the error has to name.
SPOILS: dict[str, Callable[[BadInput], object]] = {
    "truncated weights": lambda case: keep_half(case.weights),
    "empty weights": lambda case: replace_with(case.weights, b""),
    "missing weights": lambda case: remove(case.weights),
    "text as weights": lambda case: replace_with(case.weights, "这不是权重\n".encode()),
    "pickle that fetches what it never stored": lambda case: replace_with(case.weights, b"\x80\x02h\x04."),
    "number as a name": lambda case: case.save({**case.tensors(), 7: torch.zeros(1)}),
    "number as a parameter": lambda case: case.save(case.tensors() | {"pooler.dense.weight": torch.tensor(1.0)}),
    "weights under another key": lambda case: case.save(case.tensors(), key="state_dict"),
    "code in the weights": lambda case: case.save(case.tensors(), optimizer=Canary(case.canary)),
    "code in a plain pickle": lambda case: replace_with(case.weights, pickle.dumps({"model": Canary(case.canary)})),
    "hybrid": hybrid("embedding_matrix"),
    "hybrid by its fusion alone": hybrid("fusion_linear"),
    "BERT": bert_checkpoint,
    "bare BERT encoder": without("cnn_embedding.", "pooler.", "nsp.", "mlm."),
    "without a convolution's bias": without("cnn_embedding.conv1_2.bias"),
    "without the decoder's bias": without("mlm.predictions.decoder.bias"),
    "without the pooler": without("pooler.dense.weight"),
    "without a block": without(".layer.1."),
    "projection of another shape": lambda case: case.save(
        case.tensors() | {"cnn_embedding.fc1.weight": torch.zeros(128, 107)}
    ),
    "two output biases": lambda case: case.save(case.tensors() | {"mlm.predictions.bias": torch.zeros(60)}),
    "hidden size that is no multiple of the head size": hidden_size_that_is_no_multiple_of_the_head_size,
    "vocabulary without its last line": lambda case: replace_with(
        case.vocabulary, vocabulary(case.release.tokens[:-1])
    ),
    "vocabulary without [MASK]": lambda case: replace_with(
        case.vocabulary, vocabulary([token for token in case.release.tokens if token != "[MASK]"])
    ),
    "vocabulary in GBK": lambda case: replace_with(case.vocabulary, case.vocabulary.read_text("utf-8").encode("gbk")),
    "vocabulary with a word": vocabulary_with_a_word,
    "bitmaps of another shape": bitmaps(bitmaps=lambda case: np.unpackbits(case.release.bitmaps, axis=1)),
    "bitmaps of another type": bitmaps(bitmaps=lambda case: case.release.bitmaps.astype(np.float32)),
    "one bitmap too many": bitmaps(bitmaps=lambda case: made_up_images(61)),
    "code in the bitmaps": bitmaps(bitmaps=lambda case: np.array([Canary(case.canary)], dtype=object)),
    "two arrays of bitmaps": bitmaps(a=lambda case: case.release.bitmaps, b=lambda case: case.release.bitmaps),
    "truncated bitmaps": lambda case: keep_half(case.bitmaps),
    "damaged bitmaps": damaged_bitmaps,
    "bare array as bitmaps": bare_array_as_bitmaps,
    "out that is in use": out_that_is_in_use,
    "out that is a file": out_that_is_a_file,
    "out under a file": out_under_a_file,
}


@pytest.fixture(scope="module")
def taken(made_up: Release, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Taken]:
    """What became of each bad input."""
    root = tmp_path_factory.mktemp("refusals")
    commands = {}
    for number, (name, spoil) in enumerate(SPOILS.items()):
        (root / str(number)).mkdir()
        release = made_up.write(root / str(number) / "files")
        case = BadInput(release.directory, release)
        words = ["convert-release", *release.arguments, "--out", case.out]
        commands[name] = Command(words, spoil(case), case.out.parent, case.canary)
    return run_commands(commands, root)


@pytest.mark.parametrize("case", SPOILS)
def test_bad_input_is_refused_in_one_line(taken: dict[str, Taken], case: str) -> None:
    taken[case].assert_refused()


@pytest.mark.parametrize("spoil", [name for name in SPOILS if name.startswith("code in")])
def test_the_canaries_sing_when_code_is_run(made_up: Release, tmp_path: Path, spoil: str) -> None:
    release = made_up.write(tmp_path / "files")
    case = BadInput(release.directory, release)
    path = SPOILS[spoil](case)
    if path == case.bitmaps:
        np.load(path, allow_pickle=True)["bitmaps"]
    elif "plain pickle" in spoil:
        pickle.loads(case.weights.read_bytes())
    else:
        torch.load(case.weights, weights_only=False)
    assert case.canary.exists()
