"""How a fine-tuning begins: what its identity is made of, what a failed start leaves, two starts at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glyphcrm.checkpoint import digests_of_model
from glyphcrm.errors import UserError
from glyphcrm.finetuning.models import load_finetuned
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.finetuning.run import announcement, finetune
from tests.robustness.processes import Run


def options(task: Path, model: Path, run: Path) -> FinetuneOptions:
    return FinetuneOptions(str(task), str(model), output_dir=str(run), seeds=1, epochs=1)


@pytest.fixture
def pickled(directories: dict[str, Path], tmp_path: Path) -> Path:
    """A BERT whose weights are a pytorch_model.bin."""
    directory = Path(shutil.copytree(directories["bert"], tmp_path / "pickled"))
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


def test_other_weights_are_another_run_however_they_are_stored(sentiment: Path, pickled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = finetune(options(sentiment, pickled, run))
    assert finetune(options(sentiment, pickled, run)) == first
    tensors = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    name = next(name for name in tensors if name.endswith("output.dense.weight"))
    tensors[name][0, 0] += 1
    torch.save(tensors, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"other settings \(model_files: 'pytorch_model.bin'\)"):
        finetune(options(sentiment, pickled, run))


def test_what_decides_a_result_is_in_the_identity_and_what_does_not_is_not(pickled: Path) -> None:
    before = digests_of_model(pickled)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json",
                 "adapter_model.safetensors", "adapter_model.bin", "added_tokens.json"):  # fmt: skip
        (pickled / name).write_bytes(b"{}")
        assert digests_of_model(pickled) != before, name
        (pickled / name).unlink()
    for name in ("glyph_vectors.safetensors", "README.md", "training_args.bin", "modeling_x.py", "optimizer.pt"):
        (pickled / name).write_bytes(b"{}")
    assert digests_of_model(pickled) == before
    with pytest.raises(UserError, match="give a directory with a saved"):
        digests_of_model(pickled / "nowhere")


@pytest.mark.parametrize("name", ["glyphcrm", "bert"])
def test_a_start_that_fails_on_damaged_weights_leaves_nothing_and_the_repaired_ones_run(
    name: str, sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(directories[name], tmp_path / "model"))
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(UserError, match="again"):
        finetune(options(sentiment, model, tmp_path / "runs" / "new"))
    assert not (tmp_path / "runs").exists()
    (model / "model.safetensors").write_bytes(weights)
    assert finetune(options(sentiment, model, tmp_path / "runs" / "new")).best_seed == 0


def test_a_run_that_keeps_no_model_says_so_before_it_begins(sentiment: Path, tmp_path: Path) -> None:
    told = options(sentiment, tmp_path / "model", tmp_path / "run")
    sizes, splits = dict.fromkeys(("train", "dev", "test"), 8), SimpleNamespace(labels=("bad", "good"))
    data: Any = SimpleNamespace(sizes=sizes, splits=splits)
    said, run = announcement(told, data, 64), tmp_path / "run"
    assert "at most 64 tokens" in said
    assert said.endswith(f"{run}; the model is not kept: --keep-model best keeps it")
    told.keep_model = "best"
    assert announcement(told, data, 64).endswith(f"results go to {run}")


def test_a_fine_tuned_model_without_its_head_is_refused(
    sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    told = options(sentiment, directories["glyphcrm"], run)
    told.keep_model = "best"
    kept = Path(str(finetune(told).kept_model))
    load_finetuned(kept)
    tensors = {n: t for n, t in load_file(kept / "model.safetensors").items() if not n.startswith("classifier")}
    save_file(tensors, kept / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack classifier\."):
        load_finetuned(kept)


def test_of_two_at_once_one_runs_and_the_other_is_refused_in_one_line(
    sentiment: Path, directories: dict[str, Path], tmp_path: Path
) -> None:
    words = ["--task", str(sentiment), "--model", str(directories["bert"]), "--output-dir", str(tmp_path / "run")]
    both = [Run(["finetune", *words, "--seeds", "1", "--epochs", "2"], tmp_path / f"{i}.log") for i in range(2)]
    assert all(run.wait() for run in both)
    said, codes = [run.said() for run in both], [run.exit_codes[0] for run in both]
    assert sorted(map(str, codes)) == ["0", "2"], said
    refused = said[codes.index(2)]
    assert refused.count("\n") == 1 and "is in use by process" in refused
    assert (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "run" / ".lock").exists()
