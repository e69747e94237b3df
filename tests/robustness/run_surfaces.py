"""Runs' directories, prepared data, and command lines."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from contextlib import chdir
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np

from glyphcrm.cli.entry import COMMANDS, main
from glyphcrm.pretraining.corpus import Corpus
from glyphcrm.pretraining.run import PretrainingModel
from glyphcrm.training.run_directory import claim, last_checkpoint, mark_complete
from tests.robustness.file_surfaces import FINETUNING_BEGINS, PRETRAIN, PRETRAINING_BEGINS, taken
from tests.robustness.material import models, whole_text
from tests.robustness.mutation import damaged, damaged_json
from tests.robustness.runner import Case, refusable


def run_records(rng: random.Random, directory: Path) -> Case:
    """A run's directory with a damaged record or checkpoint: it is named, never used."""
    run = directory / "run"
    claim(run, {"seed": 0, "steps": 4})
    for step in (2, 4):
        checkpoint = run / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "optimizer.pt").write_bytes(rng.randbytes(200))
        (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
        mark_complete(checkpoint)
    path = rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    whole = path.read_bytes()
    path.write_bytes((damaged_json if path.suffix == ".json" else damaged)(rng, whole))

    def call() -> None:
        damaged = path.read_bytes() != whole
        claim(run, {"seed": 0, "steps": 4})
        found = last_checkpoint(run)
        if path.name not in ("run.json", "complete.json") and damaged:
            assert found is not None and found != path.parent, "a damaged checkpoint is used"

    return Case(refusable(call), str(path.relative_to(run)), run / "model")


def _pretraining(out: Path, *more: str) -> list[str]:
    return [*PRETRAIN, "--data", str(whole_text()), "--output-dir", str(out), *more]


@cache
def stopped_run() -> Path:
    """Return the directory of a run that stopped half-way; the model's and the data's files are in it."""
    run = models() / "run"
    assert main(_pretraining(run, "--stop-after", "2")) == 0
    assert last_checkpoint(run) == run / "checkpoint-2"
    return run


def run_directory(rng: random.Random, directory: Path) -> Case:
    """A run that goes on with a damaged file: it is refused, or ends with the weights of the whole run."""
    run = Path(shutil.copytree(stopped_run(), directory / "run"))
    names = ("run.json", "metrics.jsonl", "progress.json", "state.pt", "complete.json", "model.safetensors")
    names = (*names, "config.json", "parameters.json")
    path = rng.choice([path for path in sorted(run.rglob("*")) if path.name in names])
    path.write_bytes((damaged_json if path.suffix == ".json" else damaged)(rng, path.read_bytes()))

    def call() -> int:
        code = main(_pretraining(run))
        if code == 0:
            found = (run / "model" / "model.safetensors").read_bytes()
            assert hashlib.sha256(found).digest() == finished_weights(), "other weights, and nothing was said"
        return code

    return Case(call, str(path.relative_to(run)), run / "model")


@cache
def finished_weights() -> bytes:
    """Return the SHA-256 of what the stopped run ends with."""
    run = Path(shutil.copytree(stopped_run(), models() / "finished"))
    assert main(_pretraining(run)) == 0
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).digest()


def prepared_data(rng: random.Random, directory: Path) -> Case:
    """A folder of prepared data with a damaged file: it is refused, or what is trained on is the same."""
    data = Path(shutil.copytree(stopped_run() / "data", directory / "data"))
    path = rng.choice([path for path in sorted(data.rglob("*")) if path.is_file()])
    content = path.read_bytes()
    if path.suffix == ".json":
        changed = damaged_json(rng, content)
    elif rng.random() < 0.5:  # of the same size
        at = rng.randrange(len(content))
        changed = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    else:
        changed = damaged(rng, content)
    path.write_bytes(changed)
    if rng.random() < 0.05:
        path.unlink()
    out = directory / "out"

    def look(options: object, machine: object, corpus: Corpus, model: PretrainingModel) -> bool:
        assert content_of(corpus, model) == undamaged(), "other data, and nothing was said"
        return False

    def call() -> int:
        with mock.patch(PRETRAINING_BEGINS, look):
            return main(_pretraining(out, "--data-dir", str(data)))

    return Case(call, str(path.relative_to(data)), out)


def content_of(corpus: Corpus, model: PretrainingModel) -> str:
    """Return a digest of all that training would read."""
    store = corpus.store
    read = (store.sentences(0, store.sentence_count), store.sentence_ends, store.document_ends)
    digest = hashlib.sha256(json.dumps([corpus.tokenizer.tokens, corpus.vocabulary_size]).encode())
    for array in (*read, model.state_dict()["glyphcrm.glyph_table.bitmaps"].numpy()):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


@cache
def undamaged() -> str:
    """Return the digest of the data that nobody damaged."""
    found = []

    def look(options: object, machine: object, corpus: Corpus, model: PretrainingModel) -> bool:
        found.append(content_of(corpus, model))
        return False

    words = _pretraining(models() / "look", "--data-dir", str(stopped_run() / "data"))
    with mock.patch(PRETRAINING_BEGINS, look):
        assert main(words) == 0
    return found[0]


NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e400", "9" * 30, "-" + "9" * 30, "1.5", "0x10", "1_0", "½", "٣", "")
STRANGE = ("x", "--", "-", "é\n\x1b[31m", "--no-such-option", "--help=5", "@file", "*", "a" * 5000)
PLACES = (
    "--model",
    "--out",
    "--file",
    "--font",
    "--characters",
    "--text",
    "--png",
    "--atlas",
    "--bert",
    "--weights",
    "--onnx",
    "--task-model",
    "--data",
    "--output-dir",
)
OPTIONS = {
    "pretrain": (
        *("--steps", "--batch-size", "--micro-batch-size", "--learning-rate", "--warmup-steps", "--seed", "--dropout"),
        *("--eval-every", "--save-every", "--held-out", "--mask-probability", "--weight-decay", "--max-length"),
        *("--hold-steps", "--hold-share", "--still-steps"),
        *("--vocabulary-size", "--stop-after", "--workers", "--keep-checkpoints", "--preset", "--bf16", "--font"),
    ),
    "finetune": (
        *("--seeds", "--epochs", "--batch-size", "--learning-rate", "--max-length", "--micro-batch-size", "--dropout"),
        *("--train-samples", "--patience", "--warmup", "--weight-decay", "--evaluations-per-epoch", "--workers"),
        *("--task", "--model", "--truncation", "--keep-model"),
    ),
    "tokenize": ("--data", "--shard", "--workers", "--output-dir", "--preset", "--max-length", "--vocabulary-size"),
    "predict": ("--model", "--top", "--file"),
    "web": ("--model", "--task-model", "--bert", "--port"),
    "atlas": ("--weight", "--vocabulary-size", "--out", "--font", "--characters", "--text", "--png", "--atlas"),
    "convert-half": ("--model", "--out"),
    "convert-bert": ("--bert", "--seed", "--out"),
    "export": ("--model", "--onnx"),
    "convert-release": ("--weights", "--vocab", "--bitmaps", "--out"),
    "reproduce": ("--preset", "--pretraining-steps", "--hours", "--seeds", "--stop-after", "--output-dir", "--tasks"),
}


def command_line(rng: random.Random, directory: Path) -> Case:
    """Words that no one means: they are refused before anything begins. No number may be NaN or infinite."""
    command, out = rng.choice(sorted(COMMANDS)), directory / "out"
    words = {
        "pretrain": _pretraining(out)[1:],
        "finetune": ["--task", "demo_sentiment", "--model", str(models() / "glyphcrm"), "--output-dir", str(out)],
        "tokenize": ["--data", str(models() / "missing.txt"), "--output-dir", str(out)],
        "predict": ["天地", "--model", str(models() / "glyphcrm")],
        "web": ["--model", str(models() / "missing")],
        "atlas": ["show", "天", "--atlas", str(models() / "atlas.safetensors"), "--out", str(out)],
        "convert-half": ["--model", str(models() / "glyphcrm"), "--out", str(out)],
        "convert-bert": ["--bert", str(models() / "missing"), "--out", str(out)],
        "export": ["--model", str(models() / "missing"), "--onnx", str(out)],
        "reproduce": ["--output-dir", str(out), "--text", str(models() / "missing.txt")],
    }.get(command, [])
    changes = []
    for _ in range(rng.choice((1, 1, 2))):
        change = [rng.choice(OPTIONS[command]), rng.choice(NUMBERS)]
        if rng.random() < 0.3:
            change[1] = rng.choice(STRANGE)
        changes += change if rng.random() < 0.9 else change[rng.randrange(2) :]
    words = [command, *words, *changes] if rng.random() < 0.97 else [rng.choice(STRANGE), *words]

    def call() -> int:
        run = partial(main, words)
        with chdir(directory):
            code = taken(partial(taken, run, PRETRAINING_BEGINS), FINETUNING_BEGINS)
        numbers = [value for name, value in pairwise(changes) if name not in PLACES]
        assert code or not {"nan", "inf", "1e400"} & set(numbers), f"{changes} taken"
        return code

    return Case(call, str([command, *changes])[:300], out)
