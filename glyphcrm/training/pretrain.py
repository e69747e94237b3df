"""Pre-training from the command line to the finished model."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import TrainingArguments, set_seed

from glyphcrm.checkpoint import load_checkpoint, save_checkpoint
from glyphcrm.configuration import preset
from glyphcrm.data.collator import PretrainingCollator
from glyphcrm.errors import UserError, exit_on_user_error
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.kernel_backend import check_kernel_backend
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.training import corpus as corpora
from glyphcrm.training.callbacks import METRICS_FILE, MetricsFile, ProgressBar, StopOnSignal, read_metrics
from glyphcrm.training.fill_mask import print_fill_mask
from glyphcrm.training.loss_chart import draw_loss_chart
from glyphcrm.training.options import PretrainOptions, parse_options
from glyphcrm.training.run_directory import DATA_DIRECTORY, MODEL_DIRECTORY, RUN_FILE, claim, forget, last_checkpoint
from glyphcrm.training.trainer import PretrainingTrainer

INTERRUPTED_EXIT_CODE = 130


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    """Pre-train as the command line says; return the exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = parse_options(arguments)
    try:
        return pretrain(options)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"{options.run_dir}: {error.strerror}; make room, then repeat the command") from error


def pretrain(options: PretrainOptions) -> int:
    """Run, or continue, the pre-training in `options.run_dir`; return the exit code.

    Raises:
        UserError: for what the user can mend: text, fonts, settings, a full disk, a loss that diverged.
    """
    arguments = training_arguments(options)
    check_kernel_backend(preset(options.preset), arguments.device)
    is_main = arguments.process_index == 0
    is_new = not (options.run_dir / RUN_FILE).exists()
    with arguments.main_process_first(local=False, desc="preparing the text"):
        try:
            corpus, model = prepare(options, first=is_main)
        except Exception:
            if is_new and is_main:
                forget(options.run_dir)
            raise
    set_seed(options.seed)
    bar, stop = ProgressBar(), StopOnSignal()
    with arguments.main_process_first(local=False, desc="looking for a checkpoint"):
        resume = last_checkpoint(options.run_dir)
    arguments.eval_on_start = resume is None
    if is_main:
        announce(options, corpus, model, resume)
    if not (options.run_dir / MODEL_DIRECTORY).exists():
        trainer = PretrainingTrainer(
            model=model,
            args=arguments,
            train_dataset=corpus.train,
            eval_dataset=corpus.validation,
            data_collator=PretrainingCollator(corpus.tokenizer.pad_token_id),
            processing_class=corpus.tokenizer,
            glyph_learning_rate=options.recipe.glyph_learning_rate,
            callbacks=[bar, MetricsFile(options.run_dir / METRICS_FILE), stop],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except RuntimeError as error:
            # The signal that stops this process may reach its data loading process first.
            if not (stop.stopped and "DataLoader worker" in str(error)):
                raise
        finally:
            bar.close()
        if stop.stopped:
            last = last_checkpoint(options.run_dir)
            print(f"\nstopped, saved up to {last}; the same command continues", file=sys.stderr)
            return INTERRUPTED_EXIT_CODE
        if is_main:
            save_checkpoint(model, corpus.tokenizer, options.run_dir / MODEL_DIRECTORY)
    if is_main:
        report(options, corpus)
    return 0


def training_arguments(options: PretrainOptions) -> TrainingArguments:
    """Translate the options; this also joins the processes that torchrun started."""
    recipe = options.recipe
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(options.run_dir / "tensorboard")
    # Buffers never change in training, so DDP need not send them; accelerate's new name for that does.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        # Unset, accelerate warns and sets it; torch's own choice is the one that has been measured.
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    arguments = TrainingArguments(
        output_dir=str(options.run_dir),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.micro_batch_size,
        per_device_eval_batch_size=2 * recipe.micro_batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type="linear",
        weight_decay=options.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        bf16=has_bf16 if options.bf16 == "auto" else options.bf16 == "on",
        activation_checkpointing=options.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=recipe.eval_every,
        save_steps=recipe.save_every,
        save_total_limit=options.keep_checkpoints,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,  # it would hide a loss that diverged
        report_to=["tensorboard"],
        disable_tqdm=True,  # ProgressBar shows more
        seed=options.seed,
        train_sampling_strategy="sequential",  # PretrainingStream shuffles
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        accelerator_config={"even_batches": False},  # validation reads each sample once, however many processes
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=24 * 3600,  # the other processes wait while the first tokenises the text
    )
    if arguments.n_gpu > 1:
        raise UserError(
            "there are several GPUs: start it with torchrun --standalone --nproc-per-node=NUMBER pretrain.py"
        )
    arguments.gradient_accumulation_steps = options.accumulation(arguments.world_size)
    return arguments


def prepare(options: PretrainOptions, first: bool) -> tuple[corpora.Corpus, GlyphCRMForPreTraining]:
    """Return the text's samples and the model at its start; the first process makes what is missing on disk."""
    text = corpora.Text(options)
    data_dir = options.run_dir / DATA_DIRECTORY
    origin = Path(options.init) if options.init else None
    if origin is not None:
        model, tokenizer = load_initial(origin, options)
    if first:
        claim(options.run_dir, {**options.identity(), "text": text.fingerprint()})
        if origin is None:
            corpora.prepare_vocabulary(text, options, data_dir, progress=True)
    if origin is None:
        tokenizer = GlyphCRMTokenizer.from_pretrained(data_dir)
        vocabulary_size = corpora.read_vocabulary_size(data_dir)
        model = new_model(options, vocabulary_size, GlyphAtlas.load(data_dir / corpora.ATLAS_FILE))
    store = corpora.tokenized(text, tokenizer, data_dir, options.recipe.max_length, progress=first)
    corpus = corpora.build_corpus(store, tokenizer, model.config.vocab_size, options)
    if origin is None:
        model.mlm.start_from_frequencies(torch.from_numpy(corpus.label_counts()))
    return corpus, model


def new_model(options: PretrainOptions, vocabulary_size: int, atlas: GlyphAtlas) -> GlyphCRMForPreTraining:
    """Return a model of the preset's size with fresh weights, the same in every process."""
    config = preset(
        options.preset,
        vocab_size=vocabulary_size,
        num_glyphs=len(atlas),
        hidden_dropout_prob=options.recipe.dropout,
        attention_probs_dropout_prob=options.recipe.dropout,
        attn_implementation=options.attention,
    )
    check_length(options, config.max_position_embeddings)
    set_seed(options.seed)
    return GlyphCRMForPreTraining.from_atlas(config, atlas)


def load_initial(origin: Path, options: PretrainOptions) -> tuple[GlyphCRMForPreTraining, GlyphCRMTokenizer]:
    """Return model and tokenizer of --init; heads that it lacks start with fresh weights, the same in every process."""
    set_seed(options.seed)
    model, tokenizer = load_checkpoint(
        origin,
        GlyphCRMForPreTraining,
        attn_implementation=options.attention,
        hidden_dropout_prob=options.recipe.dropout,
        attention_probs_dropout_prob=options.recipe.dropout,
    )
    check_length(options, model.config.max_position_embeddings)
    return model, tokenizer


def check_length(options: PretrainOptions, positions: int) -> None:
    """Refuse sequences that the model has no positions for."""
    if options.recipe.max_length > positions:
        raise UserError(f"--max-length is {options.recipe.max_length}; the model has {positions} positions")


def announce(
    options: PretrainOptions, corpus: corpora.Corpus, model: GlyphCRMForPreTraining, resume: Path | None
) -> None:
    """Print what is about to be trained on what."""
    recipe, store = options.recipe, corpus.store
    total = sum(p.numel() for p in model.parameters())
    print(
        f"GlyphCRM {options.preset}: {total:,} parameters ({model.glyph_model.num_parameters():,} without heads), "
        f"{model.config.vocab_size:,} characters to predict, {model.config.num_glyphs:,} to read\n"
        f"text: {store.document_count:,} documents, {store.sentence_count:,} sentences, "
        f"{store.token_count:,} characters; "
        f"{len(corpus.train.pairs):,} training and {len(corpus.held_out):,} validation spans\n"
        f"{recipe.steps:,} steps of {recipe.batch_size} sequences of at most {recipe.max_length} characters, "
        f"peak learning rate {recipe.learning_rate:g}; results go to {options.run_dir}"
    )
    if resume is not None:
        print(f"continuing from {resume}")


def report(options: PretrainOptions, corpus: corpora.Corpus) -> None:
    """Draw the chart and print what the run has come to."""
    metrics = read_metrics(options.run_dir / METRICS_FILE)
    entropy = corpus.unigram_entropy()
    draw_loss_chart(metrics, entropy, options.run_dir / "loss.png")
    validations = [entry for entry in metrics if "eval_mlm_loss" in entry]
    start, end = validations[0], validations[-1]
    print(
        f"\nvalidation after {end['step']} steps (before: step {start['step']})\n"
        f"  MLM loss      {end['eval_mlm_loss']:.3f}  ({start['eval_mlm_loss']:.3f})   unigram entropy {entropy:.3f}\n"
        f"  MLM accuracy  {end['eval_mlm_accuracy']:.1%}  ({start['eval_mlm_accuracy']:.1%})\n"
        f"  NSP loss      {end['eval_nsp_loss']:.3f}  ({start['eval_nsp_loss']:.3f})   chance 0.693\n"
        f"  NSP accuracy  {end['eval_nsp_accuracy']:.1%}  ({start['eval_nsp_accuracy']:.1%})\n"
        "\nheld-out sentences, the model's five first guesses for ▢:"
    )
    print_fill_mask(options.run_dir / MODEL_DIRECTORY, corpus.held_out)
    print(
        f"\nmodel: {options.run_dir / MODEL_DIRECTORY}   chart: {options.run_dir / 'loss.png'}   "
        f"log: {options.run_dir / METRICS_FILE}"
    )
