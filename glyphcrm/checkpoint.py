"""What ties the parts of a checkpoint directory together: weights, atlas, tokenizer."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from glyphcrm.config_file import architecture_of, read_config
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError, listed
from glyphcrm.files import whole_directory
from glyphcrm.glyphs.atlas import GlyphAtlas, bitmaps_digest, tokens_digest
from glyphcrm.modeling.glyph_vectors.file import VECTORS_FILE
from glyphcrm.modeling.heads import HEADS
from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.modeling.pretrained import GlyphCRMPreTrainedModel
from glyphcrm.tokenization import GlyphCRMTokenizer
from glyphcrm.tokens import VOCABULARY_FILE, read_vocabulary

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # of weights in several files
LARGEST_INDEX = 1 << 26  # bytes
TABLE = "glyph_table."
# Of what transformers reads in a model's directory: configuration, weights (whole, in parts, pickled), adapters,
# tokenizer. No code is read.
DECIDING = (".json", ".txt", ".safetensors", ".bin", ".model")
# They lie beside a model and change nothing that is computed with it. Kept vectors equal those of the weights.
UNREAD = (VECTORS_FILE, "generation_config.json", "training_args.bin", "progress.json", "complete.json")


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write model and tokenizer to a new directory, whole or not at all; raise `UserError` if it cannot be written."""
    with whole_directory(directory) as temporary:
        _save(model, copy.copy(tokenizer), temporary)


def save_with_tokens(model: PreTrainedModel, tokens: Iterable[str], directory: Path) -> None:
    """Do `save_checkpoint` with a tokenizer of these tokens, row by row."""
    with whole_directory(directory) as temporary:
        _save(model, GlyphCRMTokenizer.from_tokens(tokens, temporary), temporary)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    model.save_pretrained(directory)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(directory)


def digests_of_model(directory: Path) -> dict[str, str]:
    """Return name -> SHA-256 of every file of a model's directory that what is computed with it may depend on.

    Raises:
        UserError: a file cannot be read.
    """
    digests = {}
    try:
        for path in sorted(directory.iterdir()):
            if path.suffix in DECIDING and path.name not in UNREAD and path.is_file():
                with open(path, "rb") as file:
                    digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}; give a directory with a saved GlyphCRM or BERT") from None
    return digests


def load_checkpoint(
    directory: Path, model_class: type[AnyModel], heads: bool = False, **settings: Any
) -> tuple[AnyModel, GlyphCRMTokenizer]:
    """Load a model, with `settings` changed in its configuration, and its tokenizer.

    Unless `heads` have to be there, those that are missing start afresh. Raises `UserError` if it is damaged.
    """
    read_config(directory, ("GlyphCRM",))
    settings = {"return_dict": True, **settings}  # outputs are read by their names here
    try:
        _check_shapes(directory, model_class)
        loaded: Any = model_class.from_pretrained(directory, output_loading_info=True, **settings)
        tokenizer = GlyphCRMTokenizer.from_pretrained(directory)
    except UserError as error:
        raise error if str(directory) in str(error) else UserError(f"{directory}: {error}") from error
    except Exception as error:  # whatever a damaged configuration or file makes transformers raise
        raise UserError(f"{directory}: damaged or incomplete ({type(error).__name__}); copy it again") from error
    model, report = loaded
    encoder = "" if heads or model.base_model is model else f"{model.base_model_prefix}."
    missing = sorted(name for name in report["missing_keys"] if name.startswith(encoder))
    if missing or report["mismatched_keys"]:
        raise UserError(
            f"{directory}: the weights lack {(missing or ['a tensor of the right shape'])[0]}; copy it again"
        )
    check_tokenizer(model, tokenizer, directory)
    return model, tokenizer


def _check_shapes(directory: Path, model_class: type[PreTrainedModel]) -> None:
    """Raise `UserError` if the model that config.json describes is not the weights'.

    Before anything of its size is made; weights in parts or pickled are left to transformers.
    """
    if not (directory / WEIGHTS_FILE).exists():
        return
    with torch.device("meta"), no_init_weights():
        described = model_class(GlyphCRMConfig.from_pretrained(directory))
    prefix = f"{described.base_model_prefix}."
    try:
        with safe_open(directory / WEIGHTS_FILE, framework="np") as file:
            found = {name.removeprefix(prefix): file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{directory / WEIGHTS_FILE}: truncated, or no weights ({error}); copy it again") from error
    encoder = {name.removeprefix(prefix) for name in described.base_model.state_dict()}
    for name, tensor in described.state_dict().items():
        name = name.removeprefix(prefix)
        if name not in found and name in encoder:
            raise UserError(f"{directory}: the weights lack {name}, which config.json describes; copy it again")
        if name in found and found[name] != list(tensor.shape):
            raise UserError(
                f"{directory}: {name} is {tuple(found[name])} in the weights, {tuple(tensor.shape)} by config.json; "
                "copy both from the same checkpoint"
            )


def load_as_saved(directory: Path, **settings: Any) -> tuple[GlyphCRMPreTrainedModel, GlyphAtlas]:
    """Load a checkpoint with the heads that it was saved with, `settings` changed in its configuration, and its atlas.

    Raises:
        UserError: no GlyphCRM checkpoint, a damaged one, or one of a class that is not in `glyphcrm.modeling`.
    """
    # Of this package's classes: a name cannot make other code run.
    known: tuple[type[GlyphCRMPreTrainedModel], ...] = (GlyphCRMModel, *HEADS.values())
    classes = {model_class.__name__: model_class for model_class in known}
    name = architecture_of(read_config(directory, ("GlyphCRM",)))
    if name not in classes:
        raise UserError(
            f"{directory}: no config.json there that names one of {', '.join(sorted(classes))}; "
            "give a directory with a saved GlyphCRM"
        )
    return load_checkpoint(directory, classes[name], heads=True, **settings)[0], load_atlas(directory)


def check_tokenizer(model: PreTrainedModel, tokenizer: GlyphCRMTokenizer, where: Path) -> None:
    """Raise `UserError` for a tokenizer whose ids are not the rows of the model's atlas."""
    config = model.config
    if not isinstance(tokenizer.model_max_length, int | float):
        raise UserError(f"{where}: model_max_length in tokenizer_config.json is no number; copy the tokenizer again")
    if tokenizer.vocab_size != config.num_glyphs or tokens_digest(tokenizer.tokens) != config.tokens_sha256:
        raise UserError(
            f"{where}: {VOCABULARY_FILE} ({tokenizer.vocab_size} tokens) does not belong to the model's atlas "
            f"({config.num_glyphs} rows); copy both from the same checkpoint"
        )


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: one, or those that an index names, as transformers looks for them.

    Raises:
        UserError: the index cannot be read, or names a file that is not beside it.
    """
    index = directory / INDEX_FILE
    if (directory / WEIGHTS_FILE).exists() or not index.exists():
        return [directory / WEIGHTS_FILE]
    try:
        with open(index, "rb") as file:
            names = sorted(set(json.loads(file.read(LARGEST_INDEX))["weight_map"].values()))
        others = [name for name in names if Path(name).name != name or not (directory / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: no index of weights ({type(error).__name__}); copy it again") from error
    if others:
        raise UserError(f"{index}: names {listed(others)}, not in this directory; copy all files of the checkpoint")
    return [directory / name for name in names]


def load_atlas(directory: Path) -> GlyphAtlas:
    """Return the atlas inside a checkpoint directory, without loading the model; raise `UserError` if it is damaged."""
    try:
        config = GlyphCRMConfig.from_pretrained(directory)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    except Exception as error:  # whatever a damaged configuration makes transformers raise
        raise UserError(f"{directory}: no config.json that can be read ({type(error).__name__})") from error
    tokens = read_vocabulary(directory / VOCABULARY_FILE)
    table: dict[str, np.ndarray] = {}
    path = directory / WEIGHTS_FILE
    try:
        for path in weight_files(directory):
            with safe_open(path, framework="np") as file:
                names = [name for name in file.keys() if TABLE in name]  # noqa: SIM118
                table |= {name.rpartition(TABLE)[2]: file.get_tensor(name) for name in names}
        bitmaps, sources = table["bitmaps"], table["sources"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: truncated, or no GlyphCRM weights ({error})") from error
    atlas = GlyphAtlas(tokens, np.asarray(bitmaps), tuple(config.glyph_fonts or ()), np.asarray(sources))
    if (tokens_digest(tokens), bitmaps_digest(atlas.bitmaps)) != (config.tokens_sha256, config.bitmaps_sha256):
        raise UserError(f"{directory}: weights and {VOCABULARY_FILE} do not match config.json; copy it again")
    return atlas
