"""`glyphcrm convert-half`: half the bytes, the same model but for the rounding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining, AutoTokenizer, pipeline

from glyphcrm.checkpoint import load_atlas
from glyphcrm.cli.entry import main
from glyphcrm.glyphs.atlas import GlyphAtlas, bitmaps_digest


def test_weights_are_stored_in_16_bits_and_used_in_32(directory: Path, tmp_path: Path, atlas: GlyphAtlas) -> None:
    assert main(["convert-half", "--model", str(directory), "--out", str(tmp_path / "half")]) == 0
    names = ({path.name for path in saved.iterdir()} for saved in (directory, tmp_path / "half"))
    assert next(names) == next(names)  # what transformers needs for trust_remote_code=True among them
    whole, half = (load_file(saved / "model.safetensors") for saved in (directory, tmp_path / "half"))
    for name, tensor in whole.items():
        stored = torch.float16 if tensor.is_floating_point() else tensor.dtype
        assert half[name].dtype == stored and torch.equal(half[name], tensor.to(stored)), name
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.float32
    assert bitmaps_digest(load_atlas(tmp_path / "half").bitmaps) == bitmaps_digest(atlas.bitmaps)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "half")
    inputs = tokenizer("天地玄黄", return_tensors="pt")
    expected = AutoModelForPreTraining.from_pretrained(directory)(**inputs).prediction_logits
    torch.testing.assert_close(model(**inputs).prediction_logits, expected, rtol=0, atol=5e-3)
    assert len(pipeline("fill-mask", str(tmp_path / "half"))("天[MASK]玄黄")) == 5


def test_what_float16_cannot_hold_is_refused(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["nsp.classifier.bias"] += 70_000
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    assert main(["convert-half", "--model", str(directory), "--out", str(tmp_path / "half")]) == 2
    assert "nsp.classifier.bias" in capsys.readouterr().err and not (tmp_path / "half").exists()


def test_a_truncated_checkpoint_is_refused(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["convert-half", "--model", str(directory), "--out", str(tmp_path / "half")]) == 2
    error = capsys.readouterr().err
    assert str(directory) in error and error.count("\n") == 1 and not (tmp_path / "half").exists()
    shutil.rmtree(directory)
    assert main(["convert-half", "--model", str(directory), "--out", str(tmp_path / "half")]) == 2


def test_damaged_pictures_are_not_copied(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["glyphcrm.glyph_table.bitmaps"][7, 100] ^= 1
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(["convert-half", "--model", str(directory), "--out", str(tmp_path / "half")]) == 2
    error = capsys.readouterr().err
    assert "do not match config.json" in error and error.count("\n") == 1 and not (tmp_path / "half").exists()
