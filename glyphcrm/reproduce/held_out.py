"""Characters that neither model saw in pre-training: GlyphCRM reads their pictures, BERT reads [UNK]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically
from glyphcrm.finetuning.results import PREDICTIONS_FILE, Spread, load_predictions
from glyphcrm.normalization import normalize
from glyphcrm.pretraining.corpus import Text
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.reproduce.held_out_characters import choose_excluded
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import Plan
from glyphcrm.reproduce.stages import ARCHITECTURES, Choice, finetune, pretrain
from glyphcrm.tasks import Kind, Splits, Task, TextExample
from glyphcrm.training.run_directory import MODEL_DIRECTORY
from glyphcrm.vocabulary import count_characters

DIRECTORY = "held_out"
CHARACTERS_FILE = "characters.txt"
HELD_OUT = 100  # characters
SEED = 0


def task_for_held_out(tasks: Iterable[Task]) -> Task | None:
    """Return the first task of single texts: on the words of reviews and titles one character matters most."""
    return next((task for task in tasks if task.kind is Kind.SENTENCE), None)


def compare_held_out(
    options: ReproduceOptions, plan: Plan, task: Task, splits: Splits, choices: Mapping[str, Choice]
) -> dict[str, Any]:
    """Pre-train both models without a hundred characters, fine-tune them on texts with these, and compare.

    Return the characters (or why there are none), and for each architecture the spread of its accuracy over the seeds,
    on the test texts with and without such a character.
    """
    directory = options.output_dir / DIRECTORY
    characters = directory / CHARACTERS_FILE
    if not characters.exists():
        directory.mkdir(parents=True, exist_ok=True)
        text = Text(PretrainOptions(data=list(options.text)))
        counts = count_characters(paragraph for document in text.documents() for paragraph in document)
        texts = [example.text for example in splits.test if isinstance(example, TextExample)]
        try:
            chosen = choose_excluded(texts, counts, HELD_OUT, SEED)
        except UserError as error:  # a small task has too few; no reason to lose the rest
            return {"task": task.name, "not_possible": str(error)}
        write_atomically(characters, "".join(sorted(chosen)).encode())
    result: dict[str, Any] = {"task": task.name, "characters": characters.read_text(encoding="utf-8"), "accuracy": {}}
    for arch in ARCHITECTURES:
        run = directory / "pretraining" / arch
        excluding = ("--exclude-characters", str(characters))
        pretrain(options, run, arch, plan.held_out_steps, (*choices[arch].arguments, *excluding), f"{DIRECTORY}/text")
        tuned = directory / "finetuning" / arch
        finetune(options, plan, task, run / MODEL_DIRECTORY, tuned)
        result["accuracy"][arch] = _by_presence(tuned, frozenset(result["characters"]), options.seeds)
    return result


def _by_presence(tuned: Path, characters: frozenset[str], seeds: int) -> dict[str, Any]:
    parts = {}
    runs = [load_predictions(tuned / f"seed-{seed}" / PREDICTIONS_FILE) for seed in range(seeds)]
    for name, is_there in (("with", True), ("without", False)):
        some = [[row for row in rows if characters.isdisjoint(normalize(row["text"])) != is_there] for rows in runs]
        if some[0]:  # the same texts for every seed
            values = [fmean(row["gold"] == row["predicted"] for row in rows) for rows in some]
            parts[name] = {"texts": len(some[0]), **asdict(Spread.of(values))}
    return parts
