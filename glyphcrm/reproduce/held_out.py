"""Characters that neither model saw in pre-training: GlyphCRM reads their pictures, BERT reads [UNK]."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically
from glyphcrm.finetuning.results import PREDICTIONS_FILE, Spread, load_predictions
from glyphcrm.glyphs.han import is_han
from glyphcrm.normalization import normalize
from glyphcrm.pretraining.corpus import Text
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.plan import Plan
from glyphcrm.reproduce.side_by_side import Workers
from glyphcrm.reproduce.stages import ARCHITECTURES, Choice, fine_tuning, pretraining
from glyphcrm.tasks import Splits, Task, TextExample
from glyphcrm.training.run_directory import MODEL_DIRECTORY
from glyphcrm.vocabulary import count_characters

DIRECTORY = "held_out"
CHARACTERS_FILE = "characters.txt"
HELD_OUT = 100  # characters
SEED = 0
LEAST_SHARE = 0.002
MOST_SHARE = 0.05
# On 11 million characters of news, 200 characters drawn beyond the 1,000 most frequent stand in 60 to 70 % of three
# tasks' test texts and leave 60 to 70 % of the corpus; beyond the 300 most frequent they leave 12 to 25 %.
KEPT_MOST_FREQUENT = 1000


def compare_held_out(
    options: ReproduceOptions,
    plan: Plan,
    task: Task,
    splits: Splits,
    choices: Mapping[str, Choice],
    workers: Workers,
) -> dict[str, Any] | None:
    """Pre-train both models without a hundred characters, fine-tune them on texts with these, and compare.

    Return the characters (or why there are none), and for each architecture the spread of its accuracy over the seeds,
    on the test texts with and without such a character, as far as there are both. Return None if a run fails.
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
    result: dict[str, Any] = {"task": task.name, "characters": characters.read_text(encoding="utf-8")}
    runs = {arch: directory / "pretraining" / arch for arch in ARCHITECTURES}
    tuned = {arch: directory / "finetuning" / arch for arch in ARCHITECTURES}
    steps, data = plan.held_out_steps, f"{DIRECTORY}/text"
    excluding = ("--exclude-characters", str(characters))
    pretrained = workers.run(
        [
            pretraining(options, run, arch, steps, (*choices[arch].arguments, *excluding), data)
            for arch, run in runs.items()
        ]
    )
    if not pretrained or not workers.run(
        [fine_tuning(options, plan, task, run / MODEL_DIRECTORY, tuned[arch]) for arch, run in runs.items()]
    ):
        return None
    held_out = frozenset(result["characters"])
    result["accuracy"] = {arch: _by_presence(of_arch, held_out, options.seeds) for arch, of_arch in tuned.items()}
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


def choose_excluded(
    texts: Iterable[str],
    corpus_counts: Mapping[str, int],
    count: int,
    seed: int,
    *,
    least_share: float = LEAST_SHARE,
    most_share: float = MOST_SHARE,
    kept_most_frequent: int = KEPT_MOST_FREQUENT,
) -> frozenset[str]:
    """Draw `count` Han characters of middling frequency in a task, the same ones for the same `seed`.

    They stand in at least `least_share` of the texts, so that they matter to the score, and in at most `most_share`.
    The corpus's most frequent characters, `kept_most_frequent` of them, are never drawn: every sentence with a drawn
    character is lost to pre-training.

    Args:
        texts: of the task, those on which the models will be tested.
        corpus_counts: character -> how often it stands in the pre-training text; those that it lacks can be drawn, too.

    Raises:
        UserError: there are no texts, or fewer than `count` such characters.
    """
    document_counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        document_counts.update(set(normalize(text)))
    # Equal counts stand in code point order, as in a vocabulary.
    by_frequency = sorted(corpus_counts, key=lambda char: (-corpus_counts[char], char))
    kept = frozenset(by_frequency[:kept_most_frequent])
    # At least one text, where the share of a few texts is less than that.
    least, most = max(1, math.ceil(least_share * total)), most_share * total
    eligible = sorted(
        char
        for char, documents in document_counts.items()
        if is_han(ord(char)) and least <= documents <= most and char not in kept
    )
    if not 1 <= count <= len(eligible):
        raise UserError(
            f"{count} held-out characters asked for; {len(eligible)} Han characters stand in {least_share:.1%} to "
            f"{most_share:.1%} of the {total:,} texts outside the corpus's {kept_most_frequent} most frequent; "
            f"give 1 to {len(eligible)}, or more text"
        )
    return frozenset(np.random.default_rng(seed).choice(eligible, count, replace=False).tolist())
