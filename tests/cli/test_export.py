"""`glyphcrm export`: the same outputs from onnxruntime, for batches of any shape; and what is wrong, in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.cli.entry import main
from glyphcrm.conversion import onnx
from glyphcrm.modeling import GlyphCRMForPreTraining, GlyphCRMForSequenceClassification
from glyphcrm.tokenization import GlyphCRMTokenizer

WITH_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in (*onnx.PACKAGES, "onnxruntime")),
    reason="installed without the extra onnx",
)


def batch(characters: int, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Return a batch of pairs; each row is a token shorter than the one before, if it can be."""
    ids = torch.randint(5, characters, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = (torch.arange(length) < torch.arange(length, length - rows, -1).clamp_min(1)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": mask * (torch.arange(length) > 3)}


@WITH_ONNX
@pytest.mark.parametrize("model_class", [GlyphCRMForPreTraining, GlyphCRMForSequenceClassification])
def test_onnxruntime_gives_what_the_saved_model_gives(
    model_class: type,
    model: GlyphCRMForPreTraining,
    tokenizer: GlyphCRMTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Logits of characters and of [CLS]; of a model whose weights are in float16."""
    import onnxruntime

    saved = model
    if model_class is GlyphCRMForSequenceClassification:
        saved = model_class(model.config)
        saved.glyphcrm.load_state_dict(model.glyphcrm.state_dict())
        saved.half()
    save_checkpoint(saved, tokenizer, tmp_path / "model")
    file = tmp_path / "model.onnx"
    assert main(["export", "--model", str(tmp_path / "model"), "--onnx", str(file)]) == 0
    expected_model = type(saved).from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size / 1e6:.1f} MB, outputs {', '.join(names)}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.onnx"]
    for rows, length in ((2, 9), (1, 5), (3, 20), (5, 2), (1, 1)):
        inputs = batch(model.config.num_glyphs, rows, length)
        with torch.no_grad():
            outputs = expected_model(**inputs)
        assert names == list(outputs.keys())
        real = inputs["attention_mask"].bool()
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        for array, expected in zip(found, outputs.values(), strict=True):
            assert array.shape == expected.shape
            difference = np.abs(array - expected.numpy())
            assert (difference[real.numpy()] if array.ndim == 3 else difference).max() <= 1e-5


def refused(capsys: pytest.CaptureFixture[str], model: Path, file: Path) -> str:
    """Return what is said of a model that is not exported; nothing is left behind."""
    before = sorted(file.parent.iterdir()) if file.parent.exists() else None
    assert main(["export", "--model", str(model), "--onnx", str(file)]) == 2
    assert before == (sorted(file.parent.iterdir()) if file.parent.exists() else None)
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def test_what_is_wrong_is_said_in_one_line(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not importlib.util.find_spec("onnx"):
        message = refused(capsys, directory, tmp_path / "a.onnx")
        assert "needs onnx" in message and "pip install 'glyphcrm[onnx]'" in message
    monkeypatch.setattr(onnx, "PACKAGES", ("no_such_package",))
    assert "needs no_such_package: pip install" in refused(capsys, directory, tmp_path / "a.onnx")
    monkeypatch.setattr(onnx, "PACKAGES", ())
    assert "no config.json there" in refused(capsys, tmp_path / "nothing", tmp_path / "a.onnx")
    assert "there is no such folder" in refused(capsys, directory, tmp_path / "absent" / "a.onnx")
    assert "is a directory" in refused(capsys, directory, directory)
    (tmp_path / "mine.txt").write_text("mine")
    assert "give one that ends in .onnx" in refused(capsys, directory, tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    assert "GiB of weights; an ONNX file holds 2" in refused(capsys, directory, tmp_path / "a.onnx")
