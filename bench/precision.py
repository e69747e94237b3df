"""What smaller numbers bring and cost when a fine-tuned model reads on a CPU.

    python -m bench.precision --model DIR --task NAME [--data DATA] [--test-samples 600] [--rounds 3]

DIR is a model that ``finetune.py --keep-model best`` kept. Prints a Markdown table: scores on the task's test set, how
many labels are those of float32, and time beside float32's, the ways taking turns, every character met before.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench import markdown
from bench.clock import interquartile_range, ratios, seconds_by_turns
from glyphcrm.cli.arguments import whole_number
from glyphcrm.errors import exit_code_of
from glyphcrm.finetuning.metrics import Prediction, score
from glyphcrm.finetuning.models import load_finetuned, reads_glyphs
from glyphcrm.finetuning.prediction import predict
from glyphcrm.tasks import Example, Task, find_task, load_splits

FLOAT32 = "float32"


def int8(model: PreTrainedModel) -> nn.Module:
    """Linear layers of the encoder in int8, each activation's scale found as it comes; PyTorch means to remove this.

    HanGlyph stays as it is: of one with other layers no vectors are kept.
    """
    from torch.ao.quantization import quantize_dynamic

    encoder = "blocks" if reads_glyphs(model) else "encoder"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = quantize_dynamic(getattr(model.base_model, encoder), {nn.Linear}, torch.qint8)  # type: ignore[attr-defined]
    setattr(model.base_model, encoder, quantized)
    return model


WAYS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {
    FLOAT32: lambda model: model,
    "bfloat16": lambda model: model.bfloat16(),  # all of it, as of from_pretrained(..., dtype=torch.bfloat16)
    "int8": int8,
}


@dataclass(frozen=True)
class Row:
    """One way."""

    name: str  # of the numbers
    scores: dict[str, float]  # on test, by name
    same: float  # share of the examples that get float32's prediction
    speed: float  # float32's seconds over its own, median of the rounds
    spread: float  # interquartile range of the rounds' speeds


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    labels: Sequence[str],
    rounds: int,
) -> list[Row]:
    """Let each way predict `examples` once untimed, then `rounds` times in turns."""
    models = {name: change(copy.deepcopy(model)) for name, change in WAYS.items()}
    length = min(task.max_length, model.config.max_position_embeddings)

    def read(name: str) -> list[Prediction]:
        return predict(models[name], tokenizer, examples, task.kind, labels, length)  # type: ignore[arg-type]

    found = {name: read(name) for name in WAYS}
    seconds = seconds_by_turns({name: lambda _, name=name: read(name) for name in WAYS}, rounds)
    rows = []
    for name, predictions in found.items():
        same = sum(a == b for a, b in zip(predictions, found[FLOAT32], strict=True)) / len(predictions)
        faster = ratios(seconds[FLOAT32], seconds[name])
        scores = score(task.kind, examples, predictions)
        rows.append(Row(name, scores, same, median(faster), interquartile_range(faster)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    names = list(rows[0].scores)
    lines = [
        [row.name, *(f"{row.scores[n]:.2%}" for n in names), f"{row.same:.2%}", f"{row.speed:.2f} ± {row.spread:.2f}"]
        for row in rows
    ]
    header = ["weights", *names, "predictions as in float32", "times as fast"]
    return "\n".join(markdown.table(header, lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a fine-tuned model")
    parser.add_argument("--task", required=True, help="the task that it was fine-tuned on")
    parser.add_argument("--data", type=Path, help="folder with the task folders")
    parser.add_argument("--test-samples", type=whole_number(1), default=600, help="the first so many of the test set")
    parser.add_argument("--rounds", type=whole_number(1), default=3)
    asked = parser.parse_args(arguments)
    task = find_task(asked.task)
    examples = load_splits(task, asked.data).test[: asked.test_samples]
    model, tokenizer = load_finetuned(asked.model)
    labels = [model.config.id2label[i] for i in range(len(model.config.id2label))]
    rows = compare(model.cpu(), tokenizer, task, examples, labels, asked.rounds)
    print(
        f"{task.title}, {len(examples):,} test examples, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
