"""Checkpoints whose weights are in several files, as transformers saves large ones: every command reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glyphcrm.checkpoint import INDEX_FILE, load_as_saved, load_atlas
from glyphcrm.cli.entry import main
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.tokenization import GlyphCRMTokenizer


@pytest.fixture
def parts(model: GlyphCRMForPreTraining, tokenizer: GlyphCRMTokenizer, tmp_path: Path) -> Path:
    where = tmp_path / "parts"
    model.save_pretrained(where, max_shard_size="50KB")
    tokenizer.save_pretrained(where)
    assert len(list(where.glob("*.safetensors"))) > 2 and not (where / "model.safetensors").exists()
    return where


def test_atlas_and_model_are_read_from_several_files(
    model: GlyphCRMForPreTraining, atlas: GlyphAtlas, parts: Path
) -> None:
    found, of_parts = load_as_saved(parts)
    for ours in (of_parts, load_atlas(parts)):
        assert ours.tokens == atlas.tokens and ours.fonts == atlas.fonts
        np.testing.assert_array_equal(ours.bitmaps, atlas.bitmaps)
        np.testing.assert_array_equal(ours.sources, atlas.sources)
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "words",
    [
        ["atlas", "nearest", "天", "--model", "parts"],
        ["atlas", "show", "天", "--atlas", "parts"],
        ["atlas", "add", "中", "--model", "parts", "--out", "more"],
        ["atlas", "encode", "--model", "parts"],
        ["predict", "--model", "parts", "天▢"],
    ],
)
def test_commands_take_weights_in_several_files(
    words: list[str], parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(parts.parent)
    assert main(words) == 0, capsys.readouterr().err


def test_halves_of_several_files_become_one(parts: Path, tmp_path: Path, model: GlyphCRMForPreTraining) -> None:
    assert main(["convert-half", "--model", str(parts), "--out", str(tmp_path / "half")]) == 0
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert not (tmp_path / "half" / INDEX_FILE).exists()
    whole = {name: tensor for path in parts.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert half.keys() == whole.keys()
    assert all(
        torch.equal(half[name], tensor.half() if tensor.is_floating_point() else tensor)
        for name, tensor in whole.items()
    )
    assert load_atlas(tmp_path / "half").tokens == load_atlas(parts).tokens


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ("{", "no index of weights"),
        ("[]", "no index of weights"),
        ('{"weight_map": {"a": 5}}', "no index of weights"),
        ("[" * 100_000, "no index of weights"),
        (
            '{"weight_map": {"a": "../elsewhere.safetensors"}}',
            "names '../elsewhere.safetensors', not in this directory",
        ),
        ('{"weight_map": {"a": ".."}}', "names '..', not in this directory"),
        ('{"weight_map": {"a": "gone\\u0000.safetensors"}}', "not in this directory"),
        ('{"weight_map": {}}', "no GlyphCRM weights"),
        ('{"weight_map": {"a": "vocab.txt"}}', "no GlyphCRM weights"),
    ],
)
def test_an_index_of_other_files_is_refused(index: str, complaint: str, parts: Path) -> None:
    whole = json.loads((parts / INDEX_FILE).read_text())["weight_map"].values()
    (parts.parent / "elsewhere.safetensors").write_bytes((parts / min(whole)).read_bytes())
    (parts / INDEX_FILE).write_text(index)
    with pytest.raises(UserError) as caught:
        load_atlas(parts)
    assert complaint in str(caught.value) and str(parts) in str(caught.value)


def test_a_missing_part_is_named(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = max(parts.glob("*.safetensors"))
    gone.unlink()
    assert main(["convert-half", "--model", str(parts), "--out", str(tmp_path / "half")]) == 2
    error = capsys.readouterr().err
    assert f"names '{gone.name}', not in this directory" in error and error.count("\n") == 1
