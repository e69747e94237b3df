"""Pre-training from the options to the finished model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, set_seed

from glyphcrm.checkpoint import digests_of_model, load_atlas, load_checkpoint, save_checkpoint, save_with_tokens
from glyphcrm.configuration import preset
from glyphcrm.data.packed_collator import PackedCollator
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import font_digests, open_font
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.backend import check_kernel_backend, kernel_backend
from glyphcrm.modeling.bert import BertBaseline
from glyphcrm.modeling.packing import is_fused_in_sequences
from glyphcrm.pretraining import corpus as corpora
from glyphcrm.pretraining.ablations import free_glyphs
from glyphcrm.pretraining.fill_mask import print_fill_mask
from glyphcrm.pretraining.loss_chart import draw_loss_chart
from glyphcrm.pretraining.objective import PretrainingObjective
from glyphcrm.pretraining.options import FREE, PLAIN, UNTIED, PretrainOptions
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.training.freed_memory import keep_freed_memory
from glyphcrm.training.graph import no_graph_because
from glyphcrm.training.loop import Training
from glyphcrm.training.machine import Machine
from glyphcrm.training.objective import Plan, Regularly
from glyphcrm.training.optimizer import OptimizerSettings
from glyphcrm.training.options import accumulation, check_length
from glyphcrm.training.progress import METRICS_FILE, Display, MetricsFile, read_metrics
from glyphcrm.training.recipe_file import write_recipe
from glyphcrm.training.reports import check_reports, reported
from glyphcrm.training.run_directory import (
    MODEL_DIRECTORY,
    PARAMETERS_FILE,
    RECIPE_FILE,
    RUN_FILE,
    claim,
    forget,
    last_checkpoint,
    locked,
    resumable,
    step_of,
    write_json,
)

VALIDATION = {f"eval_{task}_{value}" for task in ("mlm", "nsp") for value in ("loss", "accuracy")}
PretrainingModel = GlyphCRMForPreTraining | BertBaseline


def pretrain(options: PretrainOptions) -> None:
    """Run, or continue, the pre-training in `options.run_dir`. Under torchrun all processes call this.

    Raises:
        UserError: for what the user can mend: text, fonts, settings, a full disk, a loss that diverged.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint is saved, and the same call continues.
    """
    check_reports(options.report_to)
    with resumable(options.run_dir), Machine.joined("pretrain.py", options.bf16) as machine:
        accumulation(options.recipe.batch_size, options.recipe.micro_batch_size, machine.world)  # or it is refused
        config = preset(options.preset)
        check_kernel_backend(config, machine.device)
        if options.arch == "glyphcrm" and kernel_backend(config) == "auto":
            machine.try_convolutions(config.stem_channels)
        if options.reuse_memory and machine.device.type == "cpu":
            keep_freed_memory()
        is_new = not (options.run_dir / RUN_FILE).exists()
        with machine.first_process_first():
            try:
                corpus, model = prepare(options, first=machine.is_first)
            except Exception:
                if is_new and machine.is_first:
                    forget(options.run_dir)
                raise
        if train(options, machine, corpus, model) and machine.is_first:
            report(options, corpus)


def train(options: PretrainOptions, machine: Machine, corpus: corpora.Corpus, model: PretrainingModel) -> bool:
    """Train what is left to train, and save the model; return whether the run has come to its end, with a model."""
    with machine.first_process_first():
        resume = last_checkpoint(options.run_dir)
    if machine.is_first:
        announce(options, corpus, model, resume)
    packed = packed_collator(options, machine, model)
    reason = no_graph_because(machine.device, options.gradient_checkpointing)
    plan = plan_of(options, cuda_graph=packed is not None and options.cuda_graph == "auto" and not reason)
    if packed is not None and options.cuda_graph == "auto" and reason and machine.is_first:
        print(f"steps run without a CUDA graph: {reason}")
    has_no_model = plan.end < plan.steps or options.ablation is not None
    if resume is not None and step_of(resume) >= plan.end and has_no_model:
        return False
    if (options.run_dir / MODEL_DIRECTORY).exists():
        return True
    objective = PretrainingObjective(
        corpus.train,
        corpus.validation,
        plan.micro_batch_size,
        machine,
        options.keep_checkpoints,
        packed,
    )
    display = Display("pre-training", shown=machine.is_first)
    run_dir = options.run_dir
    with reported(options.report_to, run_dir.name, options.identity(), model, run_dir, machine.is_first) as reports:
        records = [MetricsFile(run_dir / METRICS_FILE), *reports]
        Training(model, objective, plan, machine, run_dir, display, records).run(resume)
    if machine.is_first and not has_no_model:
        save_model(model, corpus, options.run_dir)
    return not has_no_model


def packed_collator(options: PretrainOptions, machine: Machine, model: PretrainingModel) -> PackedCollator | None:
    """Return what makes micro-batches without padding where a GPU reads them; None for a CPU, and for a BERT.

    None, too, where attention would do the work of all pairs of a row's tokens: eager, on AMD, bfloat16 on old GPUs.
    """
    if machine.device.type != "cuda" or not isinstance(model, GlyphCRMForPreTraining):
        return None
    if not is_fused_in_sequences(machine.device, torch.bfloat16 if machine.bf16 else torch.float32, model.config):
        return None
    recipe = options.recipe
    budget = options.token_budget or recipe.micro_batch_size * recipe.max_length
    return PackedCollator(budget, recipe.max_length, mask_probability=options.mask_probability)


def plan_of(options: PretrainOptions, cuda_graph: bool) -> Plan:
    """Translate the options."""
    recipe = options.recipe
    steps = recipe.steps
    return Plan(
        steps=steps,
        end=options.stop_after or steps,
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size,
        optimizer=OptimizerSettings(
            recipe.learning_rate,
            recipe.warmup_steps,
            options.weight_decay,
            recipe.glyph_learning_rate,
            None if options.ablation == PLAIN else recipe.projection_learning_rate,
            options.hold_steps,
            options.hold_share,
            recipe.steps_of_still_convolutions,
            recipe.character_scaling,
            recipe.tied_decoder,
        ),
        logs=range(0, steps + 1, recipe.log_every),
        validations=Regularly(recipe.eval_every, steps),
        saves=range(0, steps + 1, recipe.save_every),
        save_minutes=options.save_minutes,
        seed=options.seed,
        workers=options.workers,
        gradient_checkpointing=options.gradient_checkpointing,
        cuda_graph=cuda_graph,
    )


def prepare(options: PretrainOptions, first: bool) -> tuple[corpora.Corpus, PretrainingModel]:
    """Return the text's samples and the model at its start; the first process makes what is missing on disk."""
    text = corpora.Text(options, workers=0 if options.workers == 0 else None)
    data_dir = corpora.data_directory(options)
    origin = Path(options.init) if options.init else None
    train_fonts = [open_font(font) for font in options.train_font]
    model: PretrainingModel
    if origin is not None:
        model, tokenizer = load_initial(origin, options)
    if first:
        init_files = digests_of_model(origin) if origin else None
        contents = {"text": text.fingerprint(), "init_files": init_files, "train_font_files": font_digests(train_fonts)}
        claim(options.run_dir, {**options.identity(), **contents})
        write_recipe(options.run_dir / RECIPE_FILE, options.settings())
        if origin is None:
            with locked(data_dir, wait=True):
                corpora.prepare_vocabulary(text, options, data_dir)
    if origin is None:
        atlas, tokenizer, vocabulary_size = corpora.read_prepared(data_dir)
        model = new_model(options, vocabulary_size, atlas)
    # Of runs that share the text one makes it, while the others wait.
    with locked(data_dir, wait=True) if first and text.sources is not None else nullcontext():
        store = corpora.tokenized(text, tokenizer, data_dir, options.recipe.max_length, progress=first)
    corpus = corpora.build_corpus(store, tokenizer, model.config.vocab_size, options)
    if origin is None:
        model.start_from_frequencies(torch.from_numpy(corpus.label_counts()))
        if isinstance(model, GlyphCRMForPreTraining) and options.recipe.tied_decoder:
            model.start_from_vectors()
    if train_fonts and isinstance(model, GlyphCRMForPreTraining):
        atlas = load_atlas(origin) if origin else atlas
        model.set_training_fonts([corpora.in_font(atlas, font, data_dir, progress=first) for font in train_fonts])
    return corpus, model


def new_model(options: PretrainOptions, vocabulary_size: int, atlas: GlyphAtlas) -> PretrainingModel:
    """Return a model of the preset's size with fresh weights, the same in every process."""
    config = preset(
        options.preset,
        vocab_size=vocabulary_size,
        num_glyphs=len(atlas),
        position_initializer=options.position_initializer,
        **options.sizes,
        **_changed(options),
    )
    check_length(options.recipe.max_length, config.max_position_embeddings)
    set_seed(options.seed)
    if options.arch == "bert":
        tied = options.ablation != UNTIED
        return BertBaseline.for_config(config, attn_implementation=options.attention, tie_word_embeddings=tied)
    model = GlyphCRMForPreTraining.from_atlas(config, atlas)
    if options.ablation == FREE:
        free_glyphs(model)
    return model


def load_initial(origin: Path, options: PretrainOptions) -> tuple[GlyphCRMForPreTraining, GlyphCRMTokenizer]:
    """Return model and tokenizer of --init; heads that it lacks start with fresh weights, the same in every process."""
    set_seed(options.seed)
    model, tokenizer = load_checkpoint(origin, GlyphCRMForPreTraining, **_changed(options))
    check_length(options.recipe.max_length, model.config.max_position_embeddings)
    return model, tokenizer


def _changed(options: PretrainOptions) -> dict[str, Any]:
    """Return what the options change in any model's configuration."""
    dropout = options.recipe.dropout
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return {**dropouts, "attn_implementation": options.attention}


def save_model(model: PretrainingModel, corpus: corpora.Corpus, run_dir: Path) -> None:
    """Write the trained model with its tokenizer; a BERT's has only the characters that it knows."""
    directory = run_dir / MODEL_DIRECTORY
    if isinstance(model, BertBaseline):
        save_with_tokens(model.plain(), corpus.tokenizer.tokens[: corpus.vocabulary_size], directory)
    else:
        save_checkpoint(model, corpus.tokenizer, directory)


def announce(options: PretrainOptions, corpus: corpora.Corpus, model: PretrainingModel, resume: Path | None) -> None:
    """Print what is about to be trained on what, and keep the numbers of parameters."""
    recipe, store = options.recipe, corpus.store
    encoder = cast(PreTrainedModel, model.base_model)
    parameters = {"model": model.num_parameters(), "without_heads": encoder.num_parameters()}
    write_json(options.run_dir / PARAMETERS_FILE, parameters)
    name = "GlyphCRM" if options.arch == "glyphcrm" else "BERT"
    predicted = model.config.vocab_size - len(SPECIAL_TOKENS)
    reads_more = isinstance(model, GlyphCRMForPreTraining)
    read = model.config.num_glyphs - len(SPECIAL_TOKENS) if reads_more else predicted
    print(
        f"{name} {options.preset}: {parameters['model']:,} parameters ({parameters['without_heads']:,} without heads), "
        f"{predicted:,} characters to predict, {read:,} to read\n"
        f"text: {store.document_count:,} documents, {store.sentence_count:,} sentences, "
        f"{store.token_count:,} characters; "
        f"{len(corpus.train.pairs):,} training and {len(corpus.held_out):,} validation spans\n"
        f"{recipe.steps:,} steps of {recipe.batch_size} sequences of at most {recipe.max_length} characters, "
        f"peak learning rate {recipe.learning_rate:g}; results go to {options.run_dir}"
    )
    if still := recipe.steps_of_still_convolutions:
        end = f"up to step {still}" if still < recipe.steps else f"in all {recipe.steps:,} steps (--still-steps)"
        print(f"HanGlyph's convolutions stand still {end}")
    if options.hold_steps >= recipe.steps:
        rate = f"at {options.hold_share:g} of its rates" if options.hold_share else "not at all"
        print(
            f"what makes vectors of characters moves {rate} in all steps: "
            f"--hold-steps {options.hold_steps} of {recipe.steps}"
        )
    if resume is not None:
        print(f"continuing from {resume}")


def report(options: PretrainOptions, corpus: corpora.Corpus) -> None:
    """Draw the chart and print what the run has come to."""
    path = options.run_dir / METRICS_FILE
    metrics = read_metrics(path)
    validations = [entry for entry in metrics if entry.keys() >= VALIDATION]
    if not validations:
        raise UserError(f"{path}: damaged (no validation); put back a copy of it")
    entropy = corpus.unigram_entropy()
    draw_loss_chart(metrics, entropy, options.run_dir / "loss.png")
    start, end = validations[0], validations[-1]
    print(
        f"\nvalidation after {end['step']} steps (before: step {start['step']})\n"
        f"  MLM loss      {end['eval_mlm_loss']:.3f}  ({start['eval_mlm_loss']:.3f})   unigram entropy {entropy:.3f}\n"
        f"  MLM accuracy  {end['eval_mlm_accuracy']:.1%}  ({start['eval_mlm_accuracy']:.1%})\n"
        f"  NSP loss      {end['eval_nsp_loss']:.3f}  ({start['eval_nsp_loss']:.3f})   chance 0.693\n"
        f"  NSP accuracy  {end['eval_nsp_accuracy']:.1%}  ({start['eval_nsp_accuracy']:.1%})\n"
        "\nheld-out sentences, the model's five first guesses for ▢:"
    )
    print_fill_mask(options.run_dir / MODEL_DIRECTORY, corpus.held_out, corpus.tokenizer)
    print(
        f"\nmodel: {options.run_dir / MODEL_DIRECTORY}   chart: {options.run_dir / 'loss.png'}   "
        f"log: {options.run_dir / METRICS_FILE}"
    )
