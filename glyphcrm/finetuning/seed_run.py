"""One seed of a run: train, select on dev, score on test. It can be interrupted anywhere and continued."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Self, cast

import torch
from transformers import PreTrainedModel, set_seed

from glyphcrm.checkpoint import save_checkpoint
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError
from glyphcrm.finetuning.data import RunData
from glyphcrm.finetuning.encoding import TEXT_SPECIALS, Feature, Integers, encode
from glyphcrm.finetuning.metrics import Prediction, entity_scores, score
from glyphcrm.finetuning.models import Reading, load_model
from glyphcrm.finetuning.objective import FinetuningObjective
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.finetuning.prediction import assemble
from glyphcrm.finetuning.results import PREDICTIONS_FILE, Scores, SeedResult, save_predictions
from glyphcrm.finetuning.selection import best_step, evaluation_steps
from glyphcrm.finetuning.training_order import TrainingOrder
from glyphcrm.finetuning.unseen import speakers
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.font_file import Font
from glyphcrm.modeling import GlyphCRMPreTrainedModel
from glyphcrm.modeling.backend import check_kernel_backend
from glyphcrm.tasks import Example, Kind, TaggedExample
from glyphcrm.training.loop import Training
from glyphcrm.training.machine import Machine
from glyphcrm.training.objective import Plan
from glyphcrm.training.optimizer import OptimizerSettings
from glyphcrm.training.options import check_length
from glyphcrm.training.progress import Display
from glyphcrm.training.reports import reported
from glyphcrm.training.run_checkpoint import Progress, path_of, read_weights
from glyphcrm.training.run_directory import MODEL_DIRECTORY, check_whole, checkpoints, last_checkpoint
from glyphcrm.version import __version__

LOGS = 50  # of the training loss, in a run


@dataclass(frozen=True)
class Fonts:
    """The model's characters in other fonts than its own."""

    own: GlyphAtlas | None = None  # None where there are no others
    train: Sequence[GlyphAtlas] = ()
    test: Mapping[str, GlyphAtlas] = field(default_factory=dict)  # by the font's name

    @classmethod
    def drawn(cls, own: GlyphAtlas, train: Sequence[Font], test: Sequence[Font], progress: bool) -> Self:
        """Draw the characters of `own` in each font; errors as of `GlyphAtlas.redrawn`, and two fonts of one name."""
        names = [font.name for font in test]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"two of --test-font are called {twice}, and could not be told apart; give one of them")
        atlases = [own.redrawn(font, progress=progress) for font in train]
        return cls(own, atlases, {font.name: own.redrawn(font, progress=progress) for font in test})


class SeedRun:
    """One seed of the run that `options` describe, in ``seed-N/`` of the run's directory.

    The seed is of the head, the order of the examples, and dropout.
    """

    def __init__(self, options: FinetuneOptions, data: RunData, fonts: Fonts, seed: int, machine: Machine) -> None:
        self.options, self.data, self.fonts, self.seed, self.machine = options, data, fonts, seed, machine
        self.task = options.definition
        self.directory = seed_directory(options, seed)
        self.metric = f"eval_{self.task.metric}"

    def finish(self) -> SeedResult:
        """Return the result of the seed, after training what is left to train. All processes take part.

        Raises:
            UserError: for what the user can mend: model, length, a full disk, a loss that diverged.
            KeyboardInterrupt: it was told to stop, and has saved a checkpoint.
        """
        done = SeedResult.load(self.directory)
        if done is None:
            done = self._train_and_score()
        if self.machine.is_first:
            for checkpoint in checkpoints(self.directory):
                shutil.rmtree(checkpoint)
        return done

    def _train_and_score(self) -> SeedResult:
        options, recipe, splits, kind = self.options, self.options.recipe, self.data.splits, self.task.kind
        set_seed(self.seed)
        model, tokenizer = load_model(
            Path(options.model),
            kind,
            splits.labels,
            seed=self.seed,
            dropout=options.dropout,
            attention=options.attention,
        )
        if isinstance(model.config, GlyphCRMConfig):
            check_kernel_backend(model.config, self.machine.device)
            cast(GlyphCRMPreTrainedModel, model).set_training_fonts(self.fonts.train)
        max_length = length_of(options, model.config.max_position_embeddings)
        Reading(max_length, options.truncation).record(model.config)
        shown = "encoding" if self.machine.is_first else None
        train, dev, test = (
            encode(tokenizer, part, kind, splits.labels, max_length, options.truncation, shown)
            for part in splits.parts.values()
        )
        order = TrainingOrder(train, recipe.epochs, recipe.batch_size, self.seed)
        objective = FinetuningObjective(
            model,
            order,
            options.micro_batch(self.machine.world),
            self.machine,
            dev,
            partial(self._score_dev, dev),
            self.metric,
            options.patience,
        )
        progress = self._train(model, objective, order.steps)
        best = best_step(progress.history, self.metric)
        check_whole(path_of(self.directory, best))
        read_weights(path_of(self.directory, best), model)
        answers = partial(assemble, test, examples=splits.test, kind=kind, labels=splits.labels)
        predictions = answers(objective.choose(model, test, "test"))
        in_fonts = {}
        for name, atlas in self.fonts.test.items():
            cast(GlyphCRMPreTrainedModel, model).set_atlas(atlas)
            in_fonts[name] = self._score(splits.test, answers(objective.choose(model, test, f"test in {name}")))
        if self.fonts.own is not None:
            cast(GlyphCRMPreTrainedModel, model).set_atlas(self.fonts.own)
        notes = self._notes(test, max_length)
        result = self._result(progress, best, predictions, in_fonts, model.num_parameters(), notes)
        if self.machine.is_first:
            save_predictions(self.directory / PREDICTIONS_FILE, splits.test, predictions)
            if options.keep_model == "best":
                kept = self.directory / MODEL_DIRECTORY
                shutil.rmtree(kept, ignore_errors=True)
                save_checkpoint(model, tokenizer, kept)
            result.save(self.directory)
        self.machine.wait()
        return result

    def _train(self, model: PreTrainedModel, objective: FinetuningObjective, steps: int) -> Progress:
        """Train to the end, from the last whole checkpoint; return how it went."""
        options, recipe = self.options, self.options.recipe
        evaluations = evaluation_steps(steps, recipe.epochs * options.evaluations_per_epoch)
        plan = Plan(
            steps=steps,
            end=steps,
            batch_size=recipe.batch_size,
            micro_batch_size=options.micro_batch(self.machine.world),
            optimizer=OptimizerSettings(
                recipe.learning_rate,
                round(options.warmup * steps),
                options.weight_decay,
                *options.hanglyph_rates(),
                still_steps=steps if options.still_convolutions else 0,
            ),
            logs=evaluations | set(range(0, steps, -(-steps // LOGS))),
            validations=evaluations,
            saves=evaluations,
            save_minutes=options.save_minutes,
            seed=self.seed,
            workers=options.workers,
        )
        with self.machine.first_process_first():
            resume = last_checkpoint(self.directory) if self.directory.exists() else None
        if resume is not None and self.machine.is_first:
            print(f"continuing from {resume}")
        display = Display(f"{self.task.name}, seed {self.seed}", shown=self.machine.is_first)
        title = "-".join(self.directory.parts[-3:])  # TASK-MODEL-seed-N, unless the run lives elsewhere
        settings = {"task": self.task.name, "model": options.model, "seed": self.seed, **options.identity()}
        with reported(options.report_to, title, settings, model, self.directory, self.machine.is_first) as reports:
            return Training(model, objective, plan, self.machine, self.directory, display, reports).run(resume)

    def _score_dev(self, features: Sequence[Feature], choices: Sequence[Integers]) -> dict[str, float]:
        dev = self.data.splits.dev
        return self._score(dev, assemble(features, choices, dev, self.task.kind, self.data.splits.labels))

    def _score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        return score(self.task.kind, examples, predictions)

    def _result(
        self,
        progress: Progress,
        best: int,
        predictions: Sequence[Prediction],
        in_fonts: dict[str, Scores],
        parameters: int,
        notes: list[str],
    ) -> SeedResult:
        test, unseen, prefix = self.data.splits.test, self.data.unseen, "eval_"
        of_best = next(e for e in progress.history if e["step"] == best and self.metric in e)
        return SeedResult(
            task=self.task.name,
            model=self.options.model,
            seed=self.seed,
            options=self.options.identity(),
            metric=self.task.metric,
            dev={name.removeprefix(prefix): of_best[name] for name in of_best if name.startswith(prefix)},
            test=self._score(test, predictions),
            test_unseen=self._score([test[i] for i in unseen], [predictions[i] for i in unseen]) if unseen else None,
            entities=entity_scores(test, predictions) if self.task.kind is Kind.TAGGING else None,
            best_step=best,
            steps=progress.step,
            seconds=progress.seconds,
            parameters=parameters,
            notes=[*self.data.splits.notes, *notes],
            versions=versions(self.machine.device),
            test_fonts=in_fonts,
        )

    def _notes(self, features: Sequence[Feature], max_length: int) -> list[str]:
        """Return what length and seldom cases did to the test examples."""
        examples = self.data.splits.test
        notes = []
        if max_length < self.options.recipe.max_length:
            notes.append(f"sequences have at most {max_length} tokens, as the model has no positions for more")
        if truncated := sum(feature.truncated for feature in features):
            notes.append(
                f"{truncated:,} of {len(examples):,} test texts have more than {max_length} tokens and were truncated"
            )
        if self.task.kind is Kind.TAGGING:
            pieces = Counter(feature.example for feature in features)
            if cut := sum(count > 1 for count in pieces.values()):
                notes.append(
                    f"{cut:,} of {len(examples):,} test sentences have more than {max_length - TEXT_SPECIALS} tokens; "
                    "they were read in pieces and put together again for scoring"
                )
            tagged = [example for example in examples if isinstance(example, TaggedExample)]
            if unseen := sum(i != j for example in tagged for i, j in enumerate(speakers(example.characters))):
                notes.append(
                    f"{unseen:,} characters of the test set cannot be seen (white space, ...) or are accents, and "
                    "take the tags around them"
                )
        return notes


def seed_directory(options: FinetuneOptions, seed: int) -> Path:
    """Return where a seed lives."""
    return options.run_dir / f"seed-{seed}"


def length_of(options: FinetuneOptions, positions: int) -> int:
    """Return how many tokens a sequence may have with a model of so many `positions`; raise as `check_length`."""
    check_length(options.max_length, positions)
    return min(options.recipe.max_length, positions)


def versions(device: torch.device) -> dict[str, str]:
    """Return what the scores may depend on besides the options."""
    packages = ("torch", "transformers", "scikit-learn", "seqeval")
    found = {"glyphcrm": __version__, **{package: version(package) for package in packages}}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {**found, "python": platform.python_version(), "device": name}
