"""`kill -9` at any moment: the same command goes on, and ends with the bits of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.robustness.kill_matrix import Setup, try_out
from tests.robustness.material import documents, labelled, models, tagged

KILLS = int(os.environ.get("GLYPHCRM_KILLS", "120"))  # of all setups together
SEED = int(os.environ.get("GLYPHCRM_KILLS_SEED", "0"))

PREPARED = ("data/*", "data/atlas.safetensors", "data/vocabulary.json", "data/.tokens.building/*", "data/tokens/*")
SAVED = ("checkpoint-2", "checkpoint-4/state.pt", "checkpoint-6/progress.json", "checkpoint-8/complete.json")
ENDED = (".model.*", ".model.*/model.safetensors", "model", "loss.png")
PRETRAINING = (*PREPARED, *SAVED, *ENDED)
SEEDS = tuple(
    f"seed-{seed}/{name}"
    for seed in (0, 1)
    for name in ("checkpoint-*", "checkpoint-*/state.pt", "predictions.jsonl", ".model.*/*", "result.json")
)


def pretraining(text: Path, *more: str) -> list[str]:
    words = ["--preset", "nano", "--data", str(text), "--steps", "12", "--batch-size", "4", "--save-every", "2"]
    words += ["--eval-every", "4", "--log-every", "1", "--eval-samples", "4", "--no-input-only"]
    return ["pretrain", *words, *more]


def finetuning(task: Path, *more: str) -> list[str]:
    words = ["--task", str(task), "--model", str(models() / "glyphcrm"), "--seeds", "2", "--epochs", "3"]
    return ["finetune", *words, "--batch-size", "8", "--max-length", "32", "--keep-model", "best", *more]


def setups(directory: Path) -> dict[str, Setup]:
    """Write what the commands read; return them."""
    rng = random.Random(1)
    text = directory / "text.txt"
    text.write_text("\n\n".join(documents(rng, 60)), encoding="utf-8")
    rows = "".join(f"{text}\t{label}\n" for text, label in labelled(rng, 48))
    (directory / "rows.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    (directory / "tags.bio").write_text(tagged(rng, 48), encoding="utf-8")
    sentences, names = directory / "sentences.toml", directory / "names.toml"
    sentences.write_text('kind = "sentence"\ntrain = "rows.tsv"\ntext = "text"\nlabel = "label"\n')
    names.write_text('kind = "tagging"\ntrain = "tags.bio"\n')
    one, two = ("--micro-batch-size", "4", "--workers", "0"), ("--micro-batch-size", "1", "--workers", "0")
    return {
        "pre-training": Setup(pretraining(text, *one), PRETRAINING),
        "pre-training in 2 micro-batches": Setup(
            pretraining(text, "--micro-batch-size", "2", "--workers", "1"), PRETRAINING
        ),
        "pre-training, 2 processes": Setup(pretraining(text, *two), PRETRAINING, ranks=2),
        "fine-tuning": Setup(finetuning(sentences), SEEDS),
        "fine-tuning, 2 processes": Setup(finetuning(names, "--micro-batch-size", "2"), SEEDS, ranks=2),
    }


NAMES = (
    "pre-training",
    "pre-training in 2 micro-batches",
    "pre-training, 2 processes",
    "fine-tuning",
    "fine-tuning, 2 processes",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_ends_with_the_same_bits(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = try_out(setups(tmp_path)[name], -(-KILLS // len(NAMES)), SEED, tmp_path)
    with capsys.disabled():
        print(
            f"\n{name}: {report.kills} kills ({report.kills_at_files} at a file's appearance), "
            f"{report.starts} starts, {len(report.problems)} problems"
        )
    assert not report.problems, report.problems
