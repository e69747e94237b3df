"""The table of what changes inside a model while it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import learning
from tests.pretraining.runs import command, main


@pytest.mark.parametrize("arch", ["glyphcrm", "bert"])
def test_vectors_that_are_held_do_not_move(
    arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。" * 3 for _ in range(60)), encoding="utf-8")
    held = ("--arch", arch, "--hold-steps", "8", "--hold-share", "0", "--keep-checkpoints", "9")
    assert main(command(text, tmp_path / "run", *held)) == 0
    monkeypatch.setattr("sys.argv", ["learning", str(tmp_path / "run")])
    capsys.readouterr()
    learning.main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[5:]]
    steps, losses, of_vectors, of_others, moved, positions, attention = zip(*rows, strict=True)
    assert steps == ("0", "4", "8", "12") and all(losses[i] for i in (0, 3))
    assert all(float(norm) > 0 for norm in (*of_vectors, *of_others))
    assert moved[1:3] == ("0.00", "0.00") and float(moved[3]) > 0
    assert all(0 < int(share.rstrip("%")) < 100 for share in positions)
    blocks = np.array([[int(share.rstrip("%")) for share in row.split()] for row in attention])
    assert (blocks[0] > 97).all() and (blocks <= 100).all()  # random weights attend to all alike


def test_entropies_are_of_real_tokens() -> None:
    lengths = (5, 3)
    mask = torch.tensor([[int(place < length) for place in range(5)] for length in lengths])
    scores = torch.randn(2, 4, 5, 5).masked_fill(mask[:, None, None] == 0, -torch.inf)
    shares = scores.double().softmax(-1).numpy()
    rows = [shares[row, :, place, :length] for row, length in enumerate(lengths) for place in range(length)]
    expected = np.mean([-(row * np.log(row)).sum(-1).mean() / np.log(row.shape[-1]) for row in rows])
    assert learning.attention_entropies((scores.softmax(-1),), mask)[0] == pytest.approx(expected, rel=1e-5)
