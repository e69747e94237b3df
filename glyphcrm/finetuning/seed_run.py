"""One seed of a run: train, select on dev, score on test. It can be interrupted anywhere and continued."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerState, TrainingArguments, set_seed

from glyphcrm.checkpoint import WEIGHTS_FILE, save_checkpoint
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.finetuning.callbacks import EvaluationPlan, FinetuningBar, dev_scores, evaluation_steps
from glyphcrm.finetuning.data import RunData
from glyphcrm.finetuning.encoding import TEXT_SPECIALS, Feature, Integers, encode
from glyphcrm.finetuning.metrics import Prediction, entity_scores, score
from glyphcrm.finetuning.models import load_model
from glyphcrm.finetuning.options import FinetuneOptions
from glyphcrm.finetuning.prediction import assemble, collator_for
from glyphcrm.finetuning.results import PREDICTIONS_FILE, SeedResult, save_predictions
from glyphcrm.finetuning.trainer import FinetuningTrainer
from glyphcrm.finetuning.training_order import TrainingOrder
from glyphcrm.finetuning.unseen import speakers
from glyphcrm.modeling.backend import check_kernel_backend
from glyphcrm.tasks import Example, Kind, TaggedExample
from glyphcrm.training.machine import training_arguments
from glyphcrm.training.options import check_length
from glyphcrm.training.run_directory import MODEL_DIRECTORY, checkpoints, last_checkpoint

LOGS = 50  # of the training loss, in a run
NEVER = 1 << 62  # steps; EvaluationPlan asks for checkpoints


class SeedRun:
    """One seed of the run that `options` describe, in ``seed-N/`` of the run's directory.

    The seed is of the head, the order of the examples, and dropout; `arguments` are `trainer_arguments` for it.
    """

    def __init__(self, options: FinetuneOptions, data: RunData, seed: int, arguments: TrainingArguments) -> None:
        self.options, self.data, self.seed, self.arguments = options, data, seed, arguments
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
        if self.arguments.should_save:
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
            check_kernel_backend(model.config, self.arguments.device)
        max_length = length_of(options, model.config.max_position_embeddings)
        shown = "encoding" if self.arguments.should_log else None
        train, dev, test = (
            encode(tokenizer, part, kind, splits.labels, max_length, options.truncation, shown)
            for part in splits.parts.values()
        )
        order = TrainingOrder(train, recipe.epochs, recipe.batch_size, self.seed)
        plan = EvaluationPlan(
            evaluation_steps(order.steps, recipe.epochs * options.evaluations_per_epoch), self.metric, options.patience
        )
        self.arguments.max_steps = order.steps
        self.arguments.warmup_steps = round(options.warmup * order.steps)
        self.arguments.logging_steps = -(-order.steps // LOGS)
        trainer = FinetuningTrainer(
            model=model,
            args=self.arguments,
            train_dataset=order,
            data_collator=collator_for(model),
            **options.hanglyph_rates(),
            dev=dev,
            score_dev=partial(self._score_dev, dev),
            bar=FinetuningBar(f"{self.task.name}, seed {self.seed}", self.metric),
            callbacks=[plan],
        )
        state = self._train(trainer, plan)
        best_step, _ = max(dev_scores(state, self.metric), key=lambda entry: entry[1])
        model.load_state_dict(load_file(self.directory / f"checkpoint-{best_step}" / WEIGHTS_FILE))
        predictions = assemble(test, trainer.choose(test, "test"), splits.test, kind, splits.labels)
        result = self._result(state, best_step, predictions, model.num_parameters(), self._notes(test, max_length))
        if self.arguments.should_save:
            save_predictions(self.directory / PREDICTIONS_FILE, splits.test, predictions)
            if options.keep_model == "best":
                kept = self.directory / MODEL_DIRECTORY
                shutil.rmtree(kept, ignore_errors=True)
                save_checkpoint(model, tokenizer, kept)
            result.save(self.directory)
        self.arguments.distributed_state.wait_for_everyone()
        return result

    def _train(self, trainer: FinetuningTrainer, plan: EvaluationPlan) -> TrainerState:
        """Train to the end, from the last whole checkpoint; return the history."""
        with self.arguments.main_process_first(local=False, desc="looking for a checkpoint"):
            resume = last_checkpoint(self.directory) if self.directory.exists() else None
        if resume is not None:
            state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
            if plan.is_over(state):
                return state
            if self.arguments.should_log:
                print(f"continuing from {resume}")
        if trainer.train_from(resume):
            raise KeyboardInterrupt
        return trainer.state

    def _score_dev(self, features: Sequence[Feature], choices: Sequence[Integers]) -> dict[str, float]:
        dev = self.data.splits.dev
        return self._score(dev, assemble(features, choices, dev, self.task.kind, self.data.splits.labels))

    def _score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        return score(self.task.kind, examples, predictions, self.data.splits.labels)

    def _result(
        self, state: TrainerState, best_step: int, predictions: Sequence[Prediction], parameters: int, notes: list[str]
    ) -> SeedResult:
        test, unseen, prefix = self.data.splits.test, self.data.unseen, "eval_"
        of_best = next(e for e in state.log_history if e.get("step") == best_step and self.metric in e)
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
            best_step=best_step,
            steps=state.global_step,
            seconds=next((e["seconds"] for e in reversed(state.log_history) if "seconds" in e), 0.0),
            parameters=parameters,
            notes=[*self.data.splits.notes, *notes],
            versions=versions(self.arguments.device),
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


def trainer_arguments(options: FinetuneOptions, seed: int) -> TrainingArguments:
    """Translate the options for one seed; this also joins the processes that torchrun started."""
    arguments = training_arguments(
        "finetune.py",
        seed_directory(options, seed),
        options.bf16,
        options.workers,
        learning_rate=options.recipe.learning_rate,
        weight_decay=options.weight_decay,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=NEVER,
        save_total_limit=2,  # the newest and the best
        metric_for_best_model=options.definition.metric,
        greater_is_better=True,
        seed=seed,
    )
    micro = options.micro_batch(arguments.world_size)
    arguments.per_device_train_batch_size = micro
    arguments.per_device_eval_batch_size = 2 * micro
    arguments.gradient_accumulation_steps = options.recipe.batch_size // (micro * arguments.world_size)
    return arguments


def versions(device: torch.device) -> dict[str, str]:
    """Return what the scores may depend on besides the options."""
    packages = ("glyphcrm", "torch", "transformers", "scikit-learn", "seqeval")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {**{package: version(package) for package in packages}, "python": platform.python_version(), "device": name}
