"""The authors' released checkpoints: a torch-saved dict whose key "model" holds the parameters."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.raster import PACKED_BYTES
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.tokens import read_vocabulary

HEAD_SIZE = 64  # as in all BERTs; the weights do not tell
SOURCE = "GlyphCRM release bitmaps"

# BERT's names and ours, shared with `glyphcrm.conversion.bert`: of the embeddings, and inside a block.
EMBEDDINGS = {
    "bert.embeddings.position_embeddings": "glyphcrm.position_embeddings",
    "bert.embeddings.token_type_embeddings": "glyphcrm.token_type_embeddings",
    "bert.embeddings.LayerNorm": "glyphcrm.embedding_norm",
}
BLOCK_MODULES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "output_norm",
}
# The release's modules and ours.
MODULES = {
    **EMBEDDINGS,
    "cnn_embedding.conv_pre": "glyphcrm.hanglyph.stem",
    "cnn_embedding.conv1_1": "glyphcrm.hanglyph.block1.0",
    "cnn_embedding.conv1_2": "glyphcrm.hanglyph.block1.1",
    "cnn_embedding.conv1_3": "glyphcrm.hanglyph.block1.2",
    "cnn_embedding.conv_pre_2": "glyphcrm.hanglyph.expand",
    "cnn_embedding.conv2_1": "glyphcrm.hanglyph.block2.0",
    "cnn_embedding.conv2_2": "glyphcrm.hanglyph.block2.1",
    "cnn_embedding.conv2_3": "glyphcrm.hanglyph.block2.2",
    "cnn_embedding.fc1": "glyphcrm.hanglyph.vector",
    "cnn_embedding.first_linear": "glyphcrm.hanglyph.skip1",
    "cnn_embedding.second_linear": "glyphcrm.hanglyph.skip2",
    "pooler.dense": "nsp.pooler",
    "nsp.seq_relationship": "nsp.classifier",
    "mlm.predictions.transform.dense": "mlm.dense",
    "mlm.predictions.transform.LayerNorm": "mlm.norm",
    "mlm.predictions.decoder": "mlm.decoder",
}
# Carried by the release but not read: BERT's word embeddings, and a second copy of the decoder's bias.
UNUSED = ("bert.embeddings.word_embeddings.weight", "bert.embeddings.position_ids", "mlm.predictions.bias")
HYBRID_PREFIXES = ("embedding_matrix.", "fusion_linear.")


def convert_release(weights: Path, vocabulary: Path, bitmaps: Path) -> tuple[GlyphCRMForPreTraining, GlyphAtlas]:
    """Return a released checkpoint as a model of this project, with its vocabulary and pictures as atlas.

    `weights` are torch-saved and loaded with ``weights_only=True``; `vocabulary` is UTF-8, one token a line, as many as
    the model predicts; `bitmaps` is an .npz with one ``(V, 288)`` uint8 array, bit-packed 48x48 pictures, ink = 1.

    Raises `UserError`: a file is missing, damaged, a glyph-plus-ID hybrid, or of another model.
    """
    parameters = _read_parameters(weights)
    config = _configuration(parameters, weights)
    tokens = read_vocabulary(vocabulary)
    packed = _read_bitmaps(bitmaps, config.vocab_size)
    for file, count in ((vocabulary, len(tokens)), (bitmaps, len(packed))):
        if count != config.vocab_size:
            raise UserError(
                f"{file} has {count} rows; {weights} predicts {config.vocab_size} tokens: give the release's own files"
            )
    try:
        atlas = GlyphAtlas(tokens, packed, (SOURCE,), np.zeros(len(tokens), np.uint8))
    except UserError as error:
        raise UserError(f"{vocabulary}: {error}") from None
    model = GlyphCRMForPreTraining(config)
    model.set_atlas(atlas)
    ours = renamed(parameters, MODULES)
    for name, parameter in model.named_parameters():
        if name not in ours or ours[name].shape != parameter.shape:
            found = tuple(ours[name].shape) if name in ours else "nothing"
            raise UserError(
                f"{weights}: {name} should be {tuple(parameter.shape)}, found {found}; not this model's release"
            )
    model.load_state_dict(ours, strict=False)
    return model.eval(), atlas


def _read_parameters(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the released checkpoint")
    try:
        with warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the unpickler raise
        raise UserError(
            f"{path}: damaged, or no checkpoint that can be loaded as weights only ({type(error).__name__})"
        ) from error
    parameters = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(parameters, dict) or not all(
        isinstance(name, str) and _is_plain(tensor) for name, tensor in parameters.items()
    ):
        raise UserError(f"{path}: no dict of float tensors under the key 'model'; not a released GlyphCRM checkpoint")
    parameters = {name.removeprefix("module."): tensor.float() for name, tensor in parameters.items()}
    hybrid = [name for name in parameters if name.startswith(HYBRID_PREFIXES)]
    if hybrid:
        raise UserError(
            f"{path}: a glyph-plus-ID hybrid (it has {hybrid[0]!r}); this model reads glyphs alone, "
            "give a checkpoint without embedding_matrix and fusion_linear"
        )
    for name, tensor in parameters.items():
        if name not in UNUSED and our_name(name, MODULES) is None:
            raise UserError(f"{path}: not a released GlyphCRM checkpoint (it has {name!r})")
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name!r} holds infinite or undefined numbers; the checkpoint is damaged")
    bias = parameters.get("mlm.predictions.bias")
    if bias is not None and not torch.equal(bias, parameters.get("mlm.predictions.decoder.bias", bias)):
        raise UserError(
            f"{path}: mlm.predictions.bias and mlm.predictions.decoder.bias differ; in the release they are one tensor"
        )
    return parameters


def _is_plain(value: object) -> bool:
    # position_ids, which some versions of transformers saved, are integers.
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_meta:
        return False
    # Strides of 0 would let a few bytes stand for any number of elements.
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def renamed(parameters: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the parameters that this project has a use for, by its own names."""
    return {ours: tensor for name, tensor in parameters.items() if (ours := our_name(name, modules)) is not None}


def our_name(name: str, modules: Mapping[str, str]) -> str | None:
    """Return this project's name of a parameter of one of `modules` or of a block, or None for anything else."""
    module, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    if module in modules:
        return f"{modules[module]}.{leaf}"
    return block_name(name.removeprefix("bert.")) if name.startswith("bert.") else None


def block_name(name: str) -> str | None:
    """Translate BERT's ``encoder.layer.N.…`` to this project's name, or return None for anything else."""
    parts = name.split(".")
    if parts[:2] != ["encoder", "layer"] or ".".join(parts[3:-1]) not in BLOCK_MODULES:
        return None
    return f"glyphcrm.blocks.{parts[2]}.{BLOCK_MODULES['.'.join(parts[3:-1])]}.{parts[-1]}"


def _configuration(parameters: dict[str, Tensor], path: Path) -> GlyphCRMConfig:
    def size(name: str) -> int:
        if name not in parameters or parameters[name].dim() == 0:
            raise UserError(f"{path}: lacks {name}; not a released GlyphCRM checkpoint")
        return len(parameters[name])

    blocks = {name.split(".")[3] for name in parameters if name.startswith("bert.encoder.layer.")}
    hidden = size("pooler.dense.weight")
    if hidden % HEAD_SIZE:
        raise UserError(f"{path}: hidden size {hidden} is no multiple of the {HEAD_SIZE} of an attention head")
    return GlyphCRMConfig(
        vocab_size=size("mlm.predictions.decoder.weight"),
        num_glyphs=size("mlm.predictions.decoder.weight"),
        hidden_size=hidden,
        num_hidden_layers=len(blocks),
        num_attention_heads=hidden // HEAD_SIZE,
        intermediate_size=size("bert.encoder.layer.0.intermediate.dense.weight"),
        max_position_embeddings=size("bert.embeddings.position_embeddings.weight"),
        type_vocab_size=size("bert.embeddings.token_type_embeddings.weight"),
        stem_channels=size("cnn_embedding.conv_pre.weight"),
        glyph_channels=size("cnn_embedding.conv_pre_2.weight"),
        position_map="release",
    )


def _read_bitmaps(path: Path, rows: int) -> NDArray[np.uint8]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the release's bitmaps, .npz")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        # A packed array may claim any size. Some room, so that too many rows are told as such.
        if size > 2 * rows * PACKED_BYTES + (1 << 20):
            raise UserError(
                f"{path}: {size} bytes when unpacked; {rows} bit-packed pictures have {rows * PACKED_BYTES}"
            )
        with np.load(path, allow_pickle=False) as arrays:
            (bitmaps,) = (arrays[name] for name in arrays.files)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or hostile archive makes zipfile and NumPy raise
        raise UserError(f"{path}: damaged, or no .npz with one array ({type(error).__name__})") from error
    if bitmaps.ndim != 2 or bitmaps.shape[1] != PACKED_BYTES or bitmaps.dtype != np.uint8:
        raise UserError(
            f"{path}: holds {bitmaps.shape} {bitmaps.dtype}; bit-packed pictures are (V, {PACKED_BYTES}) uint8"
        )
    return bitmaps
